"""The tables of docs/theory.md: the studies on real tasks, every check of a theorem, the times."""

from __future__ import annotations

import json
from pathlib import Path

from metapeft.episodes.protocol import Protocol
from metapeft.experiments.tables import percent


def of_theory(results: Path) -> str:
    """What stands between the markers of docs/theory.md."""
    parts = [bridge(path) for path in sorted(results.glob("bridge-*.json"))]
    parts += [theory_checks(path) for path in [results / "theory_verify.json"] if path.exists()]
    parts += [theory_times(path) for path in [results / "theory_times.json"] if path.exists()]
    return "\n\n".join(parts)


def bridge(path: Path) -> str:
    """Accuracy by method and test rank of one study, and paired differences from SR, as Markdown."""
    found = json.loads(path.read_text(encoding="utf-8"))
    cells = {(line["method"], line["value"]): line for line in found["summary"]}
    methods = list(dict.fromkeys(method for method, _ in cells))
    ranks = sorted({rank for _, rank in cells})
    runs = found["summary"][0]["runs"]
    lines = [
        f"| {found['data']}, {runs} runs | {' | '.join(f'r = {rank}' for rank in ranks)} |",
        f"| --- |{' ---: |' * len(ranks)}",
    ]
    for method in methods:
        own = [percent(cells[method, rank]["accuracy"], cells[method, rank]["ci95"]) for rank in ranks]
        lines.append(f"| {method} | {' | '.join(own)} |")
    for method in methods[1:]:
        own = [
            percent(cells[method, rank]["difference"], cells[method, rank]["difference_ci95"], sign=True)
            for rank in ranks
        ]
        lines.append(f"| {method} − {methods[0]} | {' | '.join(own)} |")
    where, protocol = found["environment"], Protocol.from_dict(found["rows"][0]["protocol"])
    seeds = ", ".join(str(seed) for seed in sorted({row["run"] for row in found["rows"]}))
    note = (
        f"{found['about']}; each run {protocol}; seeds {seeds}; commit {str(where['commit'])[:9]}, {where['cpu']}; "
        f"from `benchmarks/results/{path.name}`."
    )
    return "\n".join([*lines, "", note])


def theory_checks(path: Path) -> str:
    """Every measured statement of `theory verify` against its bound, as Markdown."""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| theorem | statement | instances | measured | bound |", "| --- | --- | ---: | ---: | ---: |"]
    for check in found["checks"]:
        shown = f"{check['measured']:.2g}" + ("" if check["passed"] else " (violated)")
        bound = f"{'≤' if check['relation'] == '<=' else '≥'} {check['bound']:.2g}"
        lines.append(
            f"| {check['theorem'] or 'beyond'} | {check['statement']} | {check['instances']} | {shown} | {bound} |"
        )
    where = found["environment"]
    note = (
        f"`python -m theory verify --seed {found['seed']}`, the worst of the instances unless said; commit "
        f"{str(where['commit'])[:9]}, {where['cpu']}; from `benchmarks/results/{path.name}`."
    )
    return "\n".join([*lines, "", note])


def theory_times(path: Path) -> str:
    """Seconds of the suite's commands, as Markdown."""
    found = json.loads(path.read_text(encoding="utf-8"))
    parts = [f"{group} {seconds:.0f} s" for group, seconds in found["seconds"].items()]
    where = found["environment"]
    return (
        f"Time on {found['cores']} cores: {', '.join(parts)} (linear figures: both protocols). Commits "
        f"{', '.join(dict.fromkeys(run['commit'][:9] for run in found['runs']))}, {where['cpu']}; from "
        f"`benchmarks/results/{path.name}`."
    )

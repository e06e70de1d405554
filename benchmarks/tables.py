"""Write the tables of README.md and docs/ from benchmarks/results: python -m benchmarks.tables [--check]."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

from benchmarks.generation_tables import of_generation, of_readme
from benchmarks.interop_tables import of_interop
from benchmarks.knn_tables import of_knn
from benchmarks.language_tables import of_language
from benchmarks.literature_tables import of_literature
from benchmarks.rank_tables import of_ranks
from benchmarks.reliability_tables import of_reliability
from benchmarks.speed_tables import of_speed, speed
from benchmarks.start_tables import of_starts
from benchmarks.theory_tables import of_theory
from metapeft.base.intervals import mean_interval
from metapeft.episodes.protocol import Protocol
from metapeft.experiments.results import read
from metapeft.experiments.tables import accuracy, apart, error_rows, percent, protocol_line
from metapeft.experiments.verdict import verdict

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
app = App(help=__doc__, version_flags=[])


def main_job(path: Path) -> str:
    """The tables of one main job, as Markdown: its sentence, accuracies with differences, and the regression."""
    found = read(path)
    columns = found.columns
    paired = [(reference, column) for reference in found.differences for column in columns]
    titles = ["method", *columns, *(f"{column}, minus {reference}" for reference, column in paired)]
    rows = [
        [
            name, *[accuracy(row.columns.get(column)) for column in columns],
            *[apart(found.differences[reference].get(name, {}).get(column)) for reference, column in paired],
        ]
        for name, row in found.rows.items()
    ]  # fmt: skip
    data = found.config["data"]
    command = (
        "bench" if "inner-off" in found.rows else "train" if data == "glyph-pairs" else f"train --data {data}"
    )
    where = found.environment
    note = (
        f"Accuracy in %, mean ± half-width of the 95 % t-interval; {protocol_line(found)}. Differences in points, "
        f"paired over the same episodes. `metapeft {command}`, seed {found.config['seed']}, commit "
        f"{str(where['commit'])[:9]}, {where['cpu']}, {where['threads']} threads, {found.seconds:.0f} s. "
        f"From `benchmarks/results/{path.name}`."
    )
    said = verdict(found)
    parts = [*([] if said is None else [said]), markdown(titles, rows), note]
    regression = found.regression
    if regression is not None and regression.differences:
        about = (
            f"Regression of {regression.name} by the same command: mean squared error; {regression.protocol}."
        )
        parts += [markdown(*error_rows(regression)), about]
    return "\n\n".join(parts)


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """A table.

    Example:
        >>> print(markdown(["a", "b"], [["1", "2"]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def few_shot(paths: list[Path]) -> str:
    """A table for each data set and kind of episodes, a line a row of the few-shot runs; empty where there are none."""
    rows: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    kinds = list(dict.fromkeys((row["data"], row["kind"]) for row in rows))
    if not kinds:
        return ""
    about = (
        "On real data, one row a file of `benchmarks/results/few_shot/`; accuracy in %, mean ± half-width of the 95 % "
        "t-interval; differences in points, paired over the same episodes:"
    )
    return "\n\n".join(
        [about, *(few_shot_table([r for r in rows if (r["data"], r["kind"]) == k]) for k in kinds)]
    )


def few_shot_table(rows: list[dict[str, Any]]) -> str:
    """The rows on one data set and kind of episodes, the best first."""
    shared = {"inner_steps": None, "norm": None, "head": None}
    said = {str(Protocol.from_dict({**row["protocol"], **shared})) for row in rows}
    if len(said) > 1:
        raise ValueError(f"rows of one table were measured by different protocols: {sorted(said)}")
    lines = [
        f"| {said.pop()} | accuracy | minus SR + LoRA | minus centroids | inner steps | statistics | commit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    bases = {(row["row"], row["seed"]): row for row in rows if row["row"] in ("sr+lora", "centroids")}
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        name = f"{row['row']}: {row['about']}"
        name += " (validation kept the start)" if row.get("best_step") == 0 else ""
        steps = row["protocol"]["inner_steps"]
        cells = (
            name, percent(row["accuracy"], row["ci95"]),
            *(minus(row, bases.get((base, row["seed"]))) for base in ("sr+lora", "centroids")),
            "-" if steps is None else str(steps), row["protocol"]["norm"], str(row["environment"]["commit"])[:9],
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def minus(row: dict[str, Any], base: dict[str, Any] | None) -> str:
    """The paired difference of two rows on the same episodes, with its 95 % t-interval; `-` without another row.

    Example:
        >>> minus({"values": [1.0, 0.0, 1.0]}, {"values": [0.0, 0.0, 1.0]})
        '+33.33 ± 143.42'
    """
    if base is None or base is row or len(base["values"]) != len(row["values"]):
        return "-"
    ours, theirs = (torch.tensor(one["values"], dtype=torch.float64) for one in (row, base))
    return percent(*mean_interval(ours - theirs), sign=True)


def of_results() -> str:
    """What stands between the markers of docs/results.md."""
    parts = [main_job(path) for path in sorted(RESULTS.glob("main_job*.json"))]
    parts.append(few_shot(sorted((RESULTS / "few_shot").glob("*.json"))))
    parts += [speed(path) for path in [RESULTS / "speed.json"] if path.exists()]
    return "\n\n".join(part for part in parts if part)


def joined(*parts: str) -> str:
    """The parts that there are, one below the other.

    Example:
        >>> joined("a", "", "b")
        'a\\n\\nb'
    """
    return "\n\n".join(filter(None, parts))


PAGES: dict[Path, Callable[[], str]] = {
    ROOT / "README.md": lambda: of_readme(RESULTS),
    ROOT / "docs" / "results.md": of_results,
    ROOT / "docs" / "few-shot.md": lambda: joined(of_literature(RESULTS), of_starts(RESULTS)),
    ROOT / "docs" / "generation.md": lambda: joined(of_generation(RESULTS), of_knn(RESULTS)),
    ROOT / "docs" / "language.md": lambda: of_language(RESULTS),
    ROOT / "docs" / "ranks.md": lambda: of_ranks(RESULTS),
    ROOT / "docs" / "reliability.md": lambda: of_reliability(RESULTS),
    ROOT / "docs" / "speed.md": lambda: of_speed(RESULTS),
    ROOT / "docs" / "theory.md": lambda: of_theory(RESULTS),
    ROOT / "docs" / "howto" / "coming.md": lambda: of_interop(RESULTS),
}


def filled(page: str, text: str) -> str:
    """A page with generated text between its markers; raises ValueError where they are missing.

    Example:
        >>> filled(f"a {BEGIN} old {END} z", "new")
        'a <!-- results:begin -->\\nnew\\n<!-- results:end --> z'
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


@app.default
def main(*, check: bool = False) -> None:
    """Fill in the tables, or with --check only say whether they are up to date."""
    for path, made in PAGES.items():
        page = path.read_text(encoding="utf-8")
        wanted = filled(page, made())
        if check and wanted != page:
            raise SystemExit(
                f"{path.name}: its tables are not what benchmarks/results say: run python -m benchmarks.tables"
            )
        if not check:
            path.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    app()

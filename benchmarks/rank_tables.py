"""The tables of docs/ranks.md, from benchmarks/results/planted_ranks.json and finetune_speed.json."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

#: rules that are controls, and how their draws are called in the rows
DRAWN = ("random", "shuffled")
RULES = (
    *("planted", "uniform", *DRAWN, "AutoLoRA, threshold", "AutoLoRA, total", "singular values, total"),
    *("Fisher, total", "prune, total", "prune"),
)
OURS = ("Fisher, total", "prune, total", "prune")
AGAINST = ("uniform", *DRAWN)


def of_ranks(results: Path) -> str:
    """What stands between the markers of the page."""
    parts = []
    if (path := results / "planted_ranks.json").exists():
        parts.append(planted(json.loads(path.read_text(encoding="utf-8"))))
    if (path := results / "finetune_speed.json").exists():
        parts.append(speed(json.loads(path.read_text(encoding="utf-8"))))
    return "\n\n".join(parts)


def mean_of(row: dict[str, Any], rule: str, what: str) -> float:
    """A number of one teacher; of a control the mean over its draws.

    Example:
        >>> mean_of({"rules": {"random 0": {"loss": 1.0}, "random 1": {"loss": 2.0}}}, "random", "loss")
        1.5
    """
    names = [n for n in row["rules"] if n == rule or (rule in DRAWN and n.startswith(f"{rule} "))]
    return statistics.fmean(float(row["rules"][name][what]) for name in names)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's rule.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    result, largest = [0.0] * len(values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        result[i] = largest
    return result


def planted(found: dict[str, Any]) -> str:
    """Layers within 1, and test losses, by rule and noise; then the tests."""
    noises = sorted({row["noise"] for row in found["rows"]})
    by_noise = {noise: [row for row in found["rows"] if row["noise"] == noise] for noise in noises}
    title = " | ".join(f"within 1, noise {noise} | test loss | terms" for noise in noises)
    lines = [f"| rule | {title} |", f"| --- |{' ---: |' * 3 * len(noises)}"]
    for rule in RULES:
        cells = []
        for rows in by_noise.values():
            layers = [row["teacher"]["depth"] for row in rows]
            within = sum(mean_of(row, rule, "within_1") * depth for row, depth in zip(rows, layers)) / sum(
                layers
            )
            terms = [
                sum(row["rules"][rule if rule in row["rules"] else f"{rule} 0"]["ranks"]) for row in rows
            ]
            true = [sum(row["rules"]["planted"]["ranks"]) for row in rows]
            cells += [f"{100 * within:.1f} %", f"{geometric([mean_of(r, rule, 'loss') for r in rows]):.5f}"]
            cells.append(f"{sum(terms) / sum(true):.2f}")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    settings, where, rows = found["settings"], found["environment"], found["rows"]
    counts = ", ".join(f"{len(own)} at noise {noise}" for noise, own in by_noise.items())
    depths = " to ".join(str(f(row["teacher"]["depth"] for row in rows)) for f in (min, max))
    widths = " to ".join(str(f(row["teacher"]["width"] for row in rows)) for f in (min, max))
    seconds = {n: statistics.median(row["seconds"][n] for row in rows) for n in rows[0]["seconds"]}
    spent = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    note = (
        f"Teachers: {counts}; {depths} layers of width {widths}, planted ranks 0 to 8. Within 1: share of all layers. "
        "Test loss: geometric mean over teachers of the mean squared error to outputs without noise, of an update "
        "trained anew at a rule's ranks. Terms: of all, by the true total. Random and shuffled: means over two draws "
        f"a teacher. {settings['steps']} steps of AdamW, batches of {settings['batch_size']}. Median seconds a search, "
        f"the machine doing other things too: {spent}. Commit {str(where['commit'])[:9]}, {where['cpu']}, "
        f"{where['threads']} thread; from `benchmarks/results/planted_ranks.json`."
    )
    return "\n".join([*lines, "", note, "", significance(by_noise)])


def significance(by_noise: dict[float, list[dict[str, Any]]]) -> str:
    """Our rules' test losses by those of the controls, with p values."""
    cells = [(noise, own, other) for noise in by_noise for own in OURS for other in AGAINST]
    ratios, values = [], []
    for noise, own, other in cells:
        pairs = [
            (math.log(mean_of(row, own, "loss")), math.log(mean_of(row, other, "loss")))
            for row in by_noise[noise]
        ]
        ratios.append(math.exp(statistics.fmean(a - b for a, b in pairs)))
        values.append(float(ttest_rel(*zip(*pairs)).pvalue) if len(pairs) > 1 else math.nan)
    corrected = dict(zip(cells, zip(ratios, holm(values))))
    lines = [f"| test loss by that of | {' | '.join(AGAINST)} |", f"| --- |{' ---: |' * len(AGAINST)}"]
    for noise in by_noise:
        for own in OURS:
            shown = [corrected[noise, own, other] for other in AGAINST]
            line = " | ".join(f"{ratio:.2f} (p = {p:.1g})" for ratio, p in shown)
            lines.append(f"| {own}, noise {noise} | {line} |")
    note = (
        "Geometric means of the ratios; p of paired t-tests of the logarithms over teachers, two-sided, corrected by "
        f"Holm for all {len(cells)} of them."
    )
    return "\n".join([*lines, "", note])


def geometric(values: Sequence[float]) -> float:
    """The geometric mean.

    Example:
        >>> geometric([1.0, 4.0])
        2.0
    """
    return math.exp(statistics.fmean(map(math.log, values)))


def speed(found: dict[str, Any]) -> str:
    """Seconds and memory of a step against PEFT and a loop."""
    lines = [
        "| a step | metapeft | PEFT and a loop | ratio | peak memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        memory = " / ".join(f"{value:.0f}" for value in row.get("peak_mib", {}).values()) or "-"
        seconds = row["seconds"]
        lines.append(
            f"| {row['case']} | {seconds['metapeft']:.2f} s | {seconds['peft']:.2f} s | {row['ratio']:.2f} | {memory} |"
        )
    where = found["environment"]
    note = (
        f"BERT of MiniLM's shape, {found['shape']} an update, LoRA on query and value, the classifier whole; medians "
        "of steps taken in turn, processor seconds; several updates against as many models of PEFT in turn, "
        "all of them in memory. "
        f"Commit {str(where['commit'])[:9]}, {where['cpu']}, {where['threads']} thread; from "
        "`benchmarks/results/finetune_speed.json`."
    )
    return "\n".join([*lines, "", note])

"""The tables of docs/language.md, from benchmarks/results/language: a tie is called a tie, and what could be seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from benchmarks.language import rows as kept
from metapeft.base.intervals import mean_interval

Row = dict[str, Any]
OWN, BASE = "metapeft", "uniform"
RULES = (
    *(
        "head only",
        "uniform",
        "random",
        "shuffled",
        "AutoLoRA, threshold",
        "AutoLoRA, total",
        "AdaLoRA",
        "Fisher",
    ),
    "rank 8",
)
METHODS = ("centroids", "sr+lora", "lora-ml", "constant", "blind", "other-task", "metapeft")
GENERATION = ("uniform", "Fisher", "rank 8", "largest rank")


def of_language(results: Path) -> str:
    """What stands between the markers of the page; a table stands there once it has a row."""
    made: dict[str, Callable[[list[Row]], str]] = {
        "intents": intents, "glue": glue, "controls": controls, "entities": entities, "generation": generation,
    }  # fmt: skip
    parts = []
    for kind, table in made.items():
        found = list(kept.rows(kind, results / "language"))
        if found:
            parts.append(table(found))
    return "\n\n".join(parts) or "No rows yet."


def table(titles: list[str], rows: Iterable[list[str]]) -> str:
    """A table whose first column is names.

    Example:
        >>> print(table(["a", "b"], [["x", "1"]]))
        | a | b |
        | --- | ---: |
        | x | 1 |
    """
    lines = [f"| {' | '.join(line)} |" for line in ([titles, ["---"] + ["---:"] * (len(titles) - 1), *rows])]
    return "\n".join(lines)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], scale: float = 100.0) -> str:
    """The mean difference over the seeds that both have, with its 95 % t-interval, and what it says.

    Example:
        >>> paired({0: 0.8, 1: 0.9, 2: 0.85}, {0: 0.7, 1: 0.8, 2: 0.76})
        '+9.67 ± 1.43'
        >>> paired({0: 0.8, 1: 0.9}, {0: 0.8, 1: 0.8})
        '+5.00 ± 63.53, a tie'
    """
    both = [seed for seed in ours if seed in theirs]
    if len(both) < 2:
        return "-"
    mean, half = mean_interval(torch.tensor([scale * (ours[seed] - theirs[seed]) for seed in both]))
    return f"{mean:+.2f} ± {half:.2f}" + ("" if abs(mean) > half else ", a tie")


def detectable(differences: list[float], power: float = 0.8) -> float:
    """The difference that a paired t-test at 5 % finds in that share of cases, where differences scatter as these do.

    `(t_{0.975, n-1} + t_{power, n-1}) s / sqrt(n)`.

    Example:
        >>> round(detectable([1.0, -1.0, 0.0, 2.0, -2.0]), 2)
        2.63
    """
    n = len(differences)
    if n < 2:
        return math.inf
    quantiles = sum(float(student.ppf(p, n - 1)) for p in (0.975, power))
    return quantiles * statistics.stdev(differences) / math.sqrt(n)


def intents(rows: list[Row]) -> str:
    """Accuracy on test intents by method and column, and paired differences to the whole method."""
    columns = sorted({(row["data"], row["shots"]) for row in rows})
    cell = {(row["row"], row["data"], row["shots"]): row["columns"]["plain"] for row in rows}
    titles, lines = ["10-way"], []
    for data, shots in columns:
        titles += [f"{data}, {shots}-shot", f"minus {OWN}"]
    for name in [one for one in METHODS if any(row["row"] == one for row in rows)]:
        line = [name]
        for data, shots in columns:
            found, own = (cell.get((one, data, shots)) for one in (name, OWN))
            line.append(
                "-" if found is None else f"{100 * found['accuracy']:.2f} ± {100 * found['ci95']:.2f}"
            )
            line.append("-" if found is None or own is None or name == OWN else _over_episodes(found, own))
        lines.append(line)
    one = rows[0]
    note = (
        f"Accuracy in %, mean ± half-width of the 95 % t-interval over {len(one['columns']['plain']['values'])} test "
        "episodes of intents that training never showed, five queries a class; differences in points, paired over the "
        f"same episodes, a tie where the interval holds 0. {_settings(one, 'pretrain_steps', 'steps', 'rank')}, "
        f"forwards in {one['settings']['autocast']}. "
        f"{_where(rows)}."
    )
    return "\n".join(["### Intents", "", table(titles, lines), "", note])


def _over_episodes(found: Row, own: Row) -> str:
    values, others = (dict(enumerate(one["values"])) for one in (found, own))
    return paired(values, others)


def glue(rows: list[Row]) -> str:
    """Scores by rule and task, differences to uniform ranks, and the power of these tests."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    scores = {(rule, task): _by_seed(rows, rule, task) for rule in RULES for task in tasks}
    titles = ["ranks"]
    for task in tasks:
        metric = "Matthews" if task == "cola" else "accuracy"
        titles += [f"{task.upper()}, {metric}", f"minus {BASE}"]
    lines = []
    for rule in [one for one in RULES if any(row["row"] == one for row in rows)]:
        line = [rule]
        for task in tasks:
            own, base = scores[rule, task], scores[BASE, task]
            line.append(f"{100 * statistics.fmean(own.values()):.2f} ({len(own)})" if own else "-")
            line.append("-" if rule == BASE else paired(own, base))
        lines.append(line)
    power = [said for task in tasks if (said := _power(rows, task))]
    one_class = _one_class(rows)
    one = rows[0]
    note = (
        "Means over seeds, their number in brackets; differences in points, paired by seed (the same sentences, order "
        "and classifier at the start), with 95 % t-intervals, a tie where the interval holds 0. "
        f"{' '.join(power)} {one_class}{_settings(one, 'sentences', 'epochs', 'batch_size', 'largest', 'total')}, "
        f"whole dev sets, {one['settings']['precision']}. {_where(rows)}."
    )
    return "\n".join(["### Ranks on GLUE", "", table(titles, lines), "", note])


def _by_seed(rows: list[Row], rule: str, task: str) -> dict[int, float]:
    return {row["seed"]: row["score"] for row in rows if row["row"] == rule and row["task"] == task}


def _power(rows: list[Row], task: str) -> str:
    """What the test of the rules of one budget against uniform ranks can show on a task."""
    base = _by_seed(rows, BASE, task)
    found = {}
    for rule in ("random", "shuffled", "AutoLoRA, total", "Fisher"):
        own = _by_seed(rows, rule, task)
        both = [100 * (own[seed] - base[seed]) for seed in own if seed in base]
        if len(both) > 1:
            found[rule] = (detectable(both), len(both))
    if not found:
        return ""
    least, most = (pick(value for value, _ in found.values()) for pick in (min, max))
    seeds = min(count for _, count in found.values())
    return f"{task.upper()}: {seeds} seeds show a difference of {least:.1f} to {most:.1f} points in four of five cases."


def _one_class(rows: list[Row]) -> str:
    stuck = [
        f"{row['row']} ({row['task']}, seed {row['seed']})"
        for row in rows
        if row["scores"].get("positive") in (0, 1)
    ]
    return (
        f"All rows called one class alone: {', '.join(stuck)}. "
        if stuck
        else "No row called one class alone. "
    )


def controls(rows: list[Row]) -> str:
    """Planted ranks by rule, and where the terms go if half of the layers are random."""
    parts = ["### Positive controls"]
    planted = [row for row in rows if row["control"] == "planted"]
    if planted:
        rules = list(planted[0]["rules"])
        losses = {rule: {row["seed"]: row["rules"][rule]["loss"] for row in planted} for rule in rules}
        lines = [
            [
                rule,
                f"{100 * statistics.fmean(row['rules'][rule]['within_1'] for row in planted):.0f} %",
                f"{statistics.fmean(losses[rule].values()):.5f}",
                "-" if rule == BASE else paired(losses[rule], losses[BASE], 1e4),
            ]
            for rule in rules
        ]
        titles = ["planted ranks", "layers within 1", "test loss", "minus uniform, 1e-4"]
        note = f"{len(planted)} teachers. {_settings(planted[0], 'noise', 'size', 'steps', 'lr')}. {_where(planted)}."
        parts += ["", table(titles, lines), "", note]
    random = [row for row in rows if row["control"] == "random"]
    if random:
        rules = list(random[0]["rules"])
        accuracy = {rule: {row["seed"]: row["rules"][rule]["accuracy"] for row in random} for rule in rules}
        lines = [
            [
                rule,
                ", ".join(str(row["rules"][rule]["on_random"]) for row in random),
                f"{100 * statistics.fmean(accuracy[rule].values()):.2f}",
                "-" if rule == BASE else paired(accuracy[rule], accuracy[BASE]),
            ]
            for rule in rules
        ]
        titles = ["half of the layers random", "terms on them, by seed", "accuracy", "minus uniform"]
        note = f"{len(random)} seeds, 24 terms in all where a rule has a budget. {_where(random)}."
        parts += ["", table(titles, lines), "", note]
    return "\n".join(parts)


def entities(rows: list[Row]) -> str:
    """Entity F1 by rule."""
    return _seeds("Entities: NCBI-disease", rows, {"entity_f1": ("entity F1", 100.0)})


def generation(rows: list[Row]) -> str:
    """BLEU and perplexity by rule."""
    return _seeds("Texts of facts: WebNLG", rows, {"bleu": ("BLEU", 1.0), "perplexity": ("perplexity", 1.0)})


def _seeds(heading: str, rows: list[Row], metrics: Mapping[str, tuple[str, float]]) -> str:
    lines = []
    for rule in GENERATION:
        own = sorted((row for row in rows if row["row"] == rule), key=lambda row: row["seed"])
        if own:
            cells = [
                ", ".join(f"{scale * row['scores'][metric]:.2f}" for row in own)
                for metric, (_, scale) in metrics.items()
            ]
            lines.append([rule, *cells])
    note = (
        "One number a seed: two seeds say nothing of small differences. "
        f"{_settings(rows[0], 'sentences', 'epochs', 'batch_size', 'lr', 'largest')}. {_where(rows)}."
    )
    return "\n".join(
        [f"### {heading}", "", table(["ranks", *(name for name, _ in metrics.values())], lines), "", note]
    )


def _settings(row: Row, *names: str) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {row['settings'][name]}" for name in names)


def _where(rows: list[Row]) -> str:
    commits = ", ".join(dict.fromkeys(str(row["environment"]["commit"])[:9] for row in rows))
    one = rows[0]["environment"]
    minutes = sum(row.get("seconds", 0.0) for row in rows) / 60
    return (
        f"Commits {commits}, {one['cpu']}, {one['threads']} thread, beside other work: {minutes:.0f} minutes in all; "
        "from `benchmarks/results/language/`"
    )

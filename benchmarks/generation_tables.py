"""The tables of docs/generation.md, from benchmarks/results/generation, with the verdict that their intervals allow."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.generation_rows import FAMILIES, rows_of
from metapeft.base.intervals import mean_interval
from metapeft.episodes.protocol import Protocol
from metapeft.experiments.tables import percent

MAIN = {"glyph-pairs": "class-encoder", "omniglot-pairs": "class-encoder"}
CONTROLS = ("constant", "blind")


class Table:
    """All results of a family at one number of inner steps.

    Args:
        family: which. inner_steps: of them. found: contents of the result files.

    Attributes:
        budgets: of outer steps, in order. rows: names, in the order of the rows' definition.
    """

    def __init__(self, family: str, inner_steps: int, found: Iterable[dict[str, Any]]) -> None:
        self.family, self.inner_steps = family, inner_steps
        self.regression = FAMILIES[family].regression
        self.files = [one for one in found if (one["family"], one["inner_steps"]) == (family, inner_steps)]
        self.budgets = sorted({one["budget"] for one in self.files})
        there = {one["row"] for one in self.files}
        self.rows = [name for name in rows_of(family) if name in there]

    def values(self, row: str, budget: int, shown: str = "own") -> dict[int, Tensor]:
        """Seed -> the value of every test task; accuracies in percent, errors as they are."""
        size = 1.0 if self.regression else 100.0
        return {
            one["seed"]: size * torch.tensor(one["values"][shown], dtype=torch.float64)
            for one in self.files
            if (one["row"], one["budget"]) == (row, budget) and shown in one["values"]
        }

    def mean_over_seeds(self, row: str, budget: int) -> Tensor:
        """The mean over seeds of every test task, in percent; LookupError where the row is missing."""
        found = _together(self.values(row, budget))
        if found is None:
            raise LookupError(f"{row} was not run at {budget} outer steps")
        return found

    def apart(self, row: str, other: str, budget: int) -> dict[int, tuple[float, float]]:
        """Seed -> the paired difference `row - other` over the test tasks, with its 95 % t-interval."""
        ours, theirs = self.values(row, budget), self.values(other, budget)
        return {seed: mean_interval(ours[seed] - theirs[seed]) for seed in ours if seed in theirs}

    def left(self, row: str, other: str, budget: int) -> float | None:
        """What share of the errors of another row this one leaves, over all seeds; None where one is missing."""
        ours, theirs = (_together(self.values(name, budget)) for name in (row, other))
        if ours is None or theirs is None:
            return None
        best = 0.0 if self.regression else 100.0
        return abs(float(ours.mean()) - best) / abs(float(theirs.mean()) - best)

    def helps(self, row: str, budget: int) -> bool:
        """Whether a row is ahead of the constant seed and of the blind one, in every seed, both intervals off zero."""
        sign = -1 if self.regression else 1
        each = [self.apart(row, control, budget) for control in CONTROLS]
        return all(found and all(sign * mean > half for mean, half in found.values()) for found in each)

    def cell(self, row: str, budget: int, shown: str = "own") -> str:
        """Mean over seeds, with the interval over tasks of the mean over seeds, and the range of the seeds."""
        values = self.values(row, budget, shown)
        together = _together(values)
        if together is None:
            return ""
        mean, half = mean_interval(together)
        digits = 3 if self.regression else 2
        each = sorted(float(value.mean()) for value in values.values())
        spread = f" ({each[0]:.{digits}f} to {each[-1]:.{digits}f})" if len(each) > 1 else ""
        return f"{mean:.{digits}f} ± {half:.{digits}f}{spread}"

    def difference(self, row: str, other: str, budget: int) -> str:
        """The paired difference of the means over seeds; empty for the row itself."""
        ours, theirs = self.values(row, budget), self.values(other, budget)
        seeds = sorted(set(ours) & set(theirs))
        if row == other or not seeds:
            return ""
        mean, half = mean_interval(torch.stack([ours[s] - theirs[s] for s in seeds]).mean(0))
        digits = 3 if self.regression else 2
        return f"{mean:+.{digits}f} ± {half:.{digits}f}"

    def markdown(self) -> str:
        """The table, and the sentence that says what it shows."""
        paired = max(self.budgets, key=lambda budget: (len(self._at(budget)), budget))
        titles = [f"{budget} outer steps" for budget in self.budgets]
        head = ["row", *titles, *(f"minus {control}, {paired}" for control in CONTROLS), "trained numbers"]
        lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
        for name in self.rows:
            about = rows_of(self.family)[name].about
            numbers = next(one["parameters"] for one in self.files if one["row"] == name)
            cells = [self.cell(name, budget) for budget in self.budgets]
            cells += [self.difference(name, control, paired) for control in CONTROLS]
            lines.append(f"| {name}: {about} | {' | '.join(cells)} | {numbers:,} |")
            for shown in ("another kind", "same kind"):
                cells = [self.cell(name, budget, shown) for budget in self.budgets]
                if any(cells):
                    kind = shown if shown == "another kind" else f"the {shown}"
                    lines.append(f"| {name}, shown a task of {kind} | {' | '.join(cells)} | | | |")
        return "\n".join([*lines, "", *self._verdict()])

    def _at(self, budget: int) -> set[str]:
        return {one["row"] for one in self.files if one["budget"] == budget}

    def _verdict(self) -> list[str]:
        main = MAIN.get(self.family, "pair-encoder")
        said = []
        for budget in self.budgets:
            left = [self.left(main, control, budget) for control in CONTROLS]
            if None in left:
                continue
            shares = " and ".join(
                f"{100 * (share or 0):.0f} % of those of `{c}`" for share, c in zip(left, CONTROLS)
            )
            helps = "helps" if self.helps(main, budget) else "does not help"
            said.append(f"at {budget} outer steps generation {helps}: `{main}` leaves {shares}")
        return [f"Errors: {'; '.join(said)}."] if said else []


def _together(values: dict[int, Tensor]) -> Tensor | None:
    """The mean over seeds for every task."""
    return torch.stack(list(values.values())).mean(0) if values else None


def results_of(results: Path) -> list[dict[str, Any]]:
    """The contents of all result files of rows."""
    paths = sorted((results / "generation").glob("*-[0-9]*-[0-9]*-[0-9]*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def of_generation(results: Path) -> str:
    """What stands between the markers of the page."""
    found = results_of(results)
    parts = []
    for family, one in FAMILIES.items():
        for inner_steps in sorted({row["inner_steps"] for row in found if row["family"] == family}):
            table = Table(family, inner_steps, found)
            what = "mean squared error" if table.regression else "accuracy in %"
            steps = (
                "nothing adapts" if not inner_steps else f"{inner_steps} inner step{'s' * (inner_steps > 1)}"
            )
            parts.append(f"### {family}: {one.about}; {steps}\n\n{table.markdown()}\n\n{_note(table, what)}")
        parts += [
            _ceiling(path) for path in [results / "generation" / f"{family}-ceiling.json"] if path.exists()
        ]
    parts += [_times(path) for path in [results / "generation" / "times.json"] if path.exists()]
    return "\n\n".join(parts) or "Nothing has been measured yet."


def _note(table: Table, what: str) -> str:
    first = table.files[0]
    protocol = Protocol.from_dict({**first["protocol"], "inner_steps": None, "head": None, "norm": None})
    seeds = sorted({one["seed"] for one in table.files})
    commits = sorted({str(one["environment"]["commit"])[:9] for one in table.files})
    return (
        f"{what[0].upper()}{what[1:]}, mean over training seeds {', '.join(map(str, seeds))} ± half-width of the 95 % "
        f"t-interval over test tasks, and the range of the seeds; differences paired over the same tasks. {protocol}. "
        f"{first['tasks']} tasks an outer step, Adam at {first['lr']:g}, cosine; commits {', '.join(commits)}, "
        f"{first['environment']['cpu']}; `python -m benchmarks.generation all {table.family}`."
    )


def _ceiling(path: Path) -> str:
    found = json.loads(path.read_text(encoding="utf-8"))
    if "ridge" in found["values"]:
        mean, half = mean_interval(torch.tensor(found["values"]["ridge"], dtype=torch.float64))
        return (
            f"Without any meta-learning a ridge regression on the cubic monomials of each task's own points (penalty "
            f"{found['penalty']:g}, not tuned) has {mean:.3f} ± {half:.3f} on the same tasks. From "
            f"`benchmarks/results/generation/{path.name}`."
        )
    told, rule = (
        percent(*mean_interval(torch.tensor(found["values"][name], dtype=torch.float64)))
        for name in ("told", "rule")
    )
    return (
        f"Ceiling: a prototypical network on the half that counts alone reaches {told} % where it is told the half, "
        f"and {rule} % where a rule takes the half whose classes lie further apart (within-class over total variance "
        f"of the support features). From `benchmarks/results/generation/{path.name}`."
    )


def _times(path: Path) -> str:
    found = json.loads(path.read_text(encoding="utf-8"))
    said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found["ratios"].items() if name != "constant")
    return (
        f"Time: a training step of glyph pairs at {found['inner_steps']} inner steps, updates on all layers, takes so "
        f"many times the processor time of the same step with a constant seed (median of {found['rounds']} rounds, "
        f"one thread): {said}. From `benchmarks/results/generation/{path.name}`."
    )


#: not in the README: a regression on each task's own points alone does better than any row
OWN_POINTS_DO = ("functions-arml",)
#: of the README's table: what the column is, and the row of images and of functions behind it
SHORT = {
    "one update for all": ("constant", "constant"),
    "generated, blind": ("blind", "blind"),
    "adapted, LoRA-ML": ("lora-ml", "lora-ml"),
    "generated from the examples": ("class-encoder", "pair-encoder"),
}


def of_readme(results: Path) -> str:
    """A line a family and number of inner steps, at the largest number of outer steps at which all were run."""
    found = results_of(results)
    lines = [f"| tasks | {' | '.join(SHORT)} |", "| --- |" + " ---: |" * len(SHORT)]
    for family in (name for name in FAMILIES if name not in OWN_POINTS_DO):
        for inner_steps in sorted({row["inner_steps"] for row in found if row["family"] == family}):
            table = Table(family, inner_steps, found)
            names = {title: own[table.regression] for title, own in SHORT.items()}
            needed = [name for name in names.values() if name in table.rows]
            budgets = [
                b for b in table.budgets if all(len(table.values(name, b)) >= SEEDS for name in needed)
            ]
            if not budgets or len(needed) < 3:
                continue
            cells = {title: _short(table, name, budgets[-1]) for title, name in names.items()}
            means = {t: mean for t, (mean, _) in cells.items() if mean is not None}
            best = (min if table.regression else max)(means.values())
            shown = [f"**{text}**" if mean == best else text for mean, text in cells.values()]
            what = "squared error" if table.regression else "right in %"
            steps = f"{inner_steps} inner step{'s' * (inner_steps != 1)}"
            lines.append(f"| {family}, {steps}, {budgets[-1]:,} outer: {what} | {' | '.join(shown)} |")
    if len(lines) == 2:
        return "Nothing has been measured yet."
    return "\n".join([
        *lines, "",
        "Means over three training seeds and fresh test tasks, with half-widths of 95 % intervals over tasks; "
        "`python -m benchmarks.generation`, [all rows and controls](docs/generation.md).",
    ])  # fmt: skip


SEEDS = 3


def _short(table: Table, row: str, budget: int) -> tuple[float | None, str]:
    """The mean of a cell, and the cell."""
    if row not in table.rows or not table.values(row, budget):
        return None, "-"
    mean, half = mean_interval(table.mean_over_seeds(row, budget))
    digits = 2 if table.regression else 1
    return mean, f"{mean:.{digits}f} ± {half:.{digits}f}"

"""Two or more runs of the main job side by side: their settings, their accuracies, and the differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metapeft.base.intervals import mean_interval
from metapeft.experiments.report.dot_plot import intervals
from metapeft.experiments.report.page import Figure, Section, Table, write_report
from metapeft.experiments.results import Cell, Interval, Results
from metapeft.experiments.tables import accuracy, apart
from metapeft.experiments.verdict import headline, points, together

_OF_THE_METHOD = {"inner_steps": None, "head": None, "norm": None, "precision": "float32", "shown": None}
ONE_TRAINING = (
    "An interval is that of the episodes. Each run is one training: another seed may move a method by more, which "
    "`metapeft sweep` shows."
)


def difference(first: Cell, second: Cell) -> tuple[Interval, bool]:
    """`second - first` with the half-width of its 95 % interval, and whether it is paired.

    Over the same episodes the t-interval of the differences; else the two half-widths in quadrature.

    Example:
        >>> difference(Cell(0.5, 0.03), Cell(0.75, 0.04))
        ((0.25, 0.05), False)
    """
    if _same_episodes(first, second):
        return mean_interval(_numbers(second) - _numbers(first)), True
    return (second.accuracy - first.accuracy, round(math.hypot(first.ci95, second.ci95), 12)), False


def _numbers(cell: Cell) -> Tensor:
    return torch.tensor(cell.values, dtype=torch.float64)


def _same_episodes(first: Cell, second: Cell) -> bool:
    protocols = [{**(cell.protocol or {}), **_OF_THE_METHOD} for cell in (first, second)]
    known = first.protocol is not None and second.protocol is not None
    return known and protocols[0] == protocols[1] and len(first.values) == len(second.values) > 1


def sentence(runs: Mapping[str, Results]) -> str:
    """What differs between the first run and each other one, over all methods and columns that both have."""
    (first, base), *others = runs.items()
    said = []
    for name, other in others:
        found = {
            (method, column): difference(cell, other.rows[method].columns[column])[0]
            for method, row in base.rows.items()
            if method in other.rows
            for column, cell in row.columns.items()
            if column in other.rows[method].columns
        }
        if not found:
            said.append(f"{name} and {first} have no method and column in common.")
            continue
        off = {key: value for key, value in found.items() if abs(value[0]) > value[1]}
        if not off:
            said.append(f"{name} is nowhere told apart from {first}, in {len(found)} numbers.")
            continue
        method, column = max(off, key=lambda key: abs(off[key][0]))
        lead = off[method, column]
        said.append(
            f"{name} differs from {first} in {len(off)} of {len(found)} numbers, most for {method} at {column}: "
            f"{points((lead[0], lead[1]))} points."
        )
    return " ".join(said)


def settings_table(runs: Mapping[str, Results]) -> Table:
    """The settings in which the runs differ, a column a run."""
    names = list(dict.fromkeys(name for found in runs.values() for name in found.config))
    rows = []
    for name in names:
        values = [_shown(found.config.get(name)) for found in runs.values()]
        if len(set(values)) > 1:
            rows.append([name, *values])
    for name in ("metapeft", "torch", "commit", "cpu", "gpu", "threads"):
        values = [_shown(found.environment.get(name)) for found in runs.values()]
        if len(set(values)) > 1:
            rows.append([name, *values])
    rows.append(["seconds", *[f"{found.seconds:.0f}" for found in runs.values()]])
    return Table(["setting", *runs], rows)


def _shown(value: Any) -> str:
    return "-" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def accuracy_table(runs: Mapping[str, Results]) -> Table:
    """A row for each method and column that any run has; differences to the first run."""
    first, *others = runs
    methods = list(dict.fromkeys(name for found in runs.values() for name in found.rows))
    columns = list(dict.fromkeys(name for found in runs.values() for name in found.columns))
    rows: list[list[str]] = []
    best: set[tuple[int, int]] = set()
    how: set[bool] = set()
    for method in methods:
        for column in columns:
            cells = [
                found.rows[method].columns.get(column) if method in found.rows else None
                for found in runs.values()
            ]
            there = [cell.accuracy for cell in cells if cell is not None]
            if not there:
                continue
            row, own = [method, column, *map(accuracy, cells)], cells[0]
            for cell in cells[1:]:
                if own is None or cell is None:
                    row.append("-")
                    continue
                lead, paired = difference(own, cell)
                how.add(paired)
                row.append(apart(lead) + ("" if paired else " *"))
            best |= {
                (len(rows), 2 + place)
                for place, cell in enumerate(cells)
                if cell is not None and cell.accuracy == max(there) and len(there) > 1
            }
            rows.append(row)
    note = "differences in points, paired over the same episodes" if True in how else ""
    if False in how:
        note += ("; " if note else "") + "* over other episodes, unpaired"
    titles = ["method", "column", *runs, *(f"{name} minus {first}" for name in others)]
    return Table(titles, rows, f"{note}. Bold: the higher mean. {ONE_TRAINING}".lstrip(". "), best)


def write(folder: Path, runs: Mapping[str, Results]) -> Path:
    """`report.html` of a comparison; returns the file."""
    (first, base), *others = runs.items()
    figures = []
    for name, other in others:
        groups = {
            column: {
                method: (lead[0], lead[1])
                for method, row in base.rows.items()
                if method in other.rows and column in row.columns and column in other.rows[method].columns
                for lead in [difference(row.columns[column], other.rows[method].columns[column])[0]]
            }
            for column in base.columns
        }
        if any(groups.values()):
            svg = intervals(groups, f"points, {name} minus {first}", reference=0.0)
            caption = f"Right of the dashed line {name} is better; what touches it is not told apart."
            figures.append(Figure(svg, caption))
    verdicts = {name: said for name, found in runs.items() if (said := headline(found)) is not None}
    sections = [
        Section("Accuracy", tables=[accuracy_table(runs)], figures=figures),
        Section("What each run says", terms=verdicts),
        Section("Where they differ in settings", tables=[settings_table(runs)]),
    ]
    return write_report(folder, f"Runs compared: {together([*runs])}", sections, verdict=sentence(runs))

"""The report's first section: accuracies and paired differences, as tables and as dots."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metapeft.base.intervals import mean_interval
from metapeft.experiments.report.dot_plot import intervals
from metapeft.experiments.report.page import Figure, Section, Table
from metapeft.experiments.results import Interval, Results
from metapeft.experiments.tables import accuracy_rows, apart, protocol_line
from metapeft.experiments.verdict import together


def accuracy_section(found: Results) -> Section:
    """Tables with the best in bold, dots with intervals, and dots around zero for the differences to each reference."""
    columns = found.columns
    titles, cells = accuracy_rows(found)
    tables = [Table(titles, cells, f"{protocol_line(found)}. Bold: {BOLD}.", best_cells(found))]
    accuracies = {
        column: {
            name: (row.columns[column].accuracy, row.columns[column].ci95)
            for name, row in found.rows.items()
            if column in row.columns
        }
        for column in columns
    }
    episodes = {len(cell.values) for row in found.rows.values() for cell in row.columns.values()}
    of = f"of {episodes.pop()} test episodes" if len(episodes) == 1 and 0 not in episodes else ""
    caption = (
        f"Each dot is a mean {of}, its bar the 95 % t-interval: further right is better. Bars of two methods may "
        "overlap and the methods differ all the same, for they met the same episodes: see the differences."
    )
    figures = [Figure(intervals(accuracies), caption)]
    for reference, others in found.differences.items():
        if others:
            rows = [[name, *[apart(row.get(column)) for column in columns]] for name, row in others.items()]
            note = "points, paired over the same episodes, 95 % t-intervals"
            tables.append(Table([f"minus {reference}", *columns], rows, note))
            figures.append(_differences(reference, others, columns))
    text = (
        "All methods saw the same number of images in the same number of outer steps, from one start. "
        + (
            "Shifted: each test episode draws one style that training never showed. "
            if "shifted" in columns
            else ""
        )
        + "Episodes in which adaptation diverged count as wrong."
    )
    return Section("Accuracy", text, tables, figures, {name: row.about for name, row in found.rows.items()})


BOLD = "the best of a column, and what its paired interval does not tell from it"


def best_cells(found: Results) -> set[tuple[int, int]]:
    """Row and column in the table of accuracies: the highest mean, and those not told from it over the same episodes.

    Example:
        >>> from metapeft.experiments.results import Cell, Row
        >>> accuracies = {"maml": (0.9, [0.9, 0.9]), "anil": (0.85, [1.0, 0.7]), "boil": (0.2, [0.2, 0.2])}
        >>> rows = {name: Row(columns={"plain": Cell(mean, 0.1, values=v)}) for name, (mean, v) in accuracies.items()}
        >>> sorted(best_cells(Results(rows=rows)))
        [(0, 1), (1, 1)]
    """
    best = set()
    for place, column in enumerate(found.columns, 1):
        cells = {
            row: method.columns[column]
            for row, method in enumerate(found.rows.values())
            if column in method.columns
        }
        top = max(cells.values(), key=lambda cell: cell.accuracy)
        for row, cell in cells.items():
            same = cell.accuracy == top.accuracy
            best |= {(row, place)} if same or _level(top.values, cell.values) else set()
    return best


def _level(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the interval of the paired difference holds zero."""
    if not first or len(first) != len(second):
        return False
    own, other = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    mean, half = mean_interval(own - other)
    return abs(mean) <= half


def _differences(reference: str, others: dict[str, dict[str, Interval]], columns: list[str]) -> Figure:
    """Dots around zero, and in words which are off it in every column."""
    groups = {
        column: {name: (row[column][0], row[column][1]) for name, row in others.items() if column in row}
        for column in columns
    }
    svg = intervals(groups, f"points, minus {reference}", reference=0.0)
    found: dict[str, list[str]] = {"behind": [], "ahead": [], "level": []}
    for name, row in others.items():
        signs = {0 if abs(mean) <= half else (1 if mean > 0 else -1) for mean, half in row.values()}
        if len(signs) == 1:
            found[{-1: "behind", 1: "ahead", 0: "level"}[signs.pop()]].append(name)
    said = {
        "behind": "behind in every column: {}",
        "ahead": "ahead in every column: {}",
        "level": "nowhere told apart from it: {}",
    }
    words = "; ".join(said[what].format(together(names)) for what, names in found.items() if names)
    caption = (
        f"The dashed line is {reference} on the same episodes: what touches it is not told apart from it."
    )
    return Figure(svg, f"{caption} {words[:1].upper()}{words[1:]}." if words else caption)

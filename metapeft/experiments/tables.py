"""Tables for the terminal, from the results that a run keeps."""

from __future__ import annotations

from rich.table import Table

from metapeft.episodes.protocol import Protocol
from metapeft.experiments.results import Cell, Interval, Regression, Results, Row


def percent(value: float, half: float, sign: bool = False) -> str:
    """`91.20 ± 0.60`, in percent.

    Example:
        >>> percent(0.912, 0.006)
        '91.20 ± 0.60'
    """
    return f"{100 * value:{'+' if sign else ''}.2f} ± {100 * half:.2f}"


def accuracy(cell: Cell | None) -> str:
    """A cell of the accuracy table, with the number of episodes in which adaptation diverged; `-` without numbers.

    Example:
        >>> accuracy(Cell(accuracy=0.9, ci95=0.01, diverged=2))
        '90.00 ± 1.00 (2 diverged)'
    """
    if cell is None:
        return "-"
    return percent(cell.accuracy, cell.ci95) + (f" ({cell.diverged} diverged)" if cell.diverged else "")


def apart(difference: Interval | None) -> str:
    """A paired difference in points; `-` without numbers.

    Example:
        >>> apart((-0.07, 0.01)), apart(None)
        ('-7.00 ± 1.00', '-')
    """
    return "-" if difference is None else percent(difference[0], difference[1], sign=True)


def error(value: Interval | None, sign: bool = False) -> str:
    """A mean squared error, or a difference of two, with its interval; `-` without numbers.

    Example:
        >>> error((0.5, 0.01))
        '0.500 ± 0.010'
    """
    return "-" if value is None else f"{value[0]:{'+' if sign else ''}.3f} ± {value[1]:.3f}"


def inner_steps(row: Row) -> str:
    """The numbers of inner steps that validation chose, by column.

    Example:
        >>> cell = Cell(accuracy=0.9, ci95=0.01)
        >>> chosen = {"plain": {"steps": 5}, "shifted": {"steps": 10}}
        >>> inner_steps(Row(chosen=chosen, columns={"plain": cell, "shifted": cell}))
        '5 / 10'
    """
    steps = [row.steps(column) for column in row.columns]
    return " / ".join(str(count) for count in steps if count is not None) or "-"


def protocol_line(found: Results) -> str:
    """The protocols that the numbers of the table share."""
    rows = found.rows.values()
    stored = [next(row.columns[c] for row in rows if c in row.columns).protocol or {} for c in found.columns]
    own = {"inner_steps": None, "head": None, "shown": None}
    return "; ".join(dict.fromkeys(str(Protocol.from_dict({**one, **own})) for one in stored))


def accuracy_rows(found: Results) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table of accuracies: method, columns, inner steps where chosen, numbers of a task."""
    chosen = any(inner_steps(row) != "-" for row in found.rows.values())
    titles = ["method", *found.columns, *(["inner steps"] if chosen else []), "numbers a task"]
    cells = [
        [
            name, *[accuracy(row.columns.get(column)) for column in found.columns],
            *([inner_steps(row)] if chosen else []), str(row.parameters),
        ]
        for name, row in found.rows.items()
    ]  # fmt: skip
    return titles, cells


def tables(found: Results) -> list[Table]:
    """All tables of a run."""
    title = "accuracy in %, mean ± half-width of the 95 % t-interval"
    shown = [drawn(title, *accuracy_rows(found), protocol_line(found))]
    for reference, rows in found.differences.items():
        if rows:
            cells = [
                [name, *[apart(row.get(column)) for column in found.columns]] for name, row in rows.items()
            ]
            title = f"difference to {reference} in points, paired over the same episodes"
            shown.append(drawn(title, ["method", *found.columns], cells))
    if found.regression is not None:
        title = f"regression of {found.regression.name}: mean squared error"
        shown.append(drawn(title, *error_rows(found.regression), found.regression.protocol))
    return shown


def error_rows(found: Regression) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of a regression: errors by number of inner steps, and differences to the whole method."""
    counts = list(dict.fromkeys(count for row in found.rows.values() for count in row))
    paired = counts if found.differences else []
    said = {count: f"{count} step{'s' * (count != '1')}" for count in counts}
    titles = [*said.values(), *(f"{said[count]}, minus metapeft" for count in paired)]
    cells = []
    for name, row in found.rows.items():
        apart_by = found.differences.get(name, {})
        own = [error(row.get(count)) for count in counts]
        cells.append([name, *own, *[error(apart_by.get(count), sign=True) for count in paired]])
    return ["method", *titles], cells


def drawn(title: str, columns: list[str], rows: list[list[str]], caption: str | None = None) -> Table:
    """A table for the terminal, whose first column is read as names."""
    result = Table(title=title, caption=caption)
    for place, column in enumerate(columns):
        result.add_column(column, justify="right" if place else "left")
    for row in rows:
        result.add_row(*row)
    return result

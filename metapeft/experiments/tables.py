"""Tables for the terminal, from the results that a run keeps."""

from __future__ import annotations

from rich.table import Table

from metapeft.episodes.protocol import Protocol
from metapeft.experiments.results import Cell, Results, Row, SinusoidResults


def percent(value: float, half: float, sign: bool = False) -> str:
    """`91.20 ± 0.60`, in percent.

    Example:
        >>> percent(0.912, 0.006)
        '91.20 ± 0.60'
    """
    return f"{100 * value:{'+' if sign else ''}.2f} ± {100 * half:.2f}"


def accuracy(cell: Cell) -> str:
    """A cell of the accuracy table, with the number of episodes in which adaptation diverged.

    Example:
        >>> accuracy(Cell(accuracy=0.9, ci95=0.01, diverged=2))
        '90.00 ± 1.00 (2 diverged)'
    """
    return percent(cell.accuracy, cell.ci95) + (f" ({cell.diverged} diverged)" if cell.diverged else "")


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
    """The protocol that all numbers of the table share."""
    row = next(iter(found.rows.values()))
    stored = [cell.protocol or {} for cell in row.columns.values()]
    return "; ".join(str(Protocol.from_dict({**one, "inner_steps": None, "head": None})) for one in stored)


def tables(found: Results) -> list[Table]:
    """All tables of a run."""
    shown = [
        table(found),
        *[differences_table(found, name) for name, rows in found.differences.items() if rows],
    ]
    return shown if found.sinusoid is None else [*shown, sinusoid_table(found.sinusoid)]


def table(found: Results) -> Table:
    """Accuracy by method and column, with inner steps and the numbers of a task."""
    columns = list(next(iter(found.rows.values())).columns)
    result = Table(
        title="accuracy in %, mean ± half-width of the 95 % t-interval", caption=protocol_line(found)
    )
    result.add_column("method")
    for column in columns:
        result.add_column(column, justify="right")
    result.add_column("inner steps", justify="right")
    result.add_column("numbers a task", justify="right")
    for name, row in found.rows.items():
        cells = [accuracy(row.columns[column]) for column in columns]
        result.add_row(name, *cells, inner_steps(row), str(row.parameters))
    return result


def differences_table(found: Results, reference: str) -> Table:
    """Paired differences against one method, in points."""
    rows = found.differences[reference]
    columns = list(next(iter(rows.values()))) if rows else []
    result = Table(title=f"difference to {reference} in points, paired over the same episodes")
    result.add_column("method")
    for column in columns:
        result.add_column(column, justify="right")
    for name, cells in rows.items():
        result.add_row(name, *[percent(cells[column][0], cells[column][1], sign=True) for column in columns])
    return result


def sinusoid_table(found: SinusoidResults) -> Table:
    """Mean squared error before and after adaptation."""
    result = Table(title="sinusoid regression: mean squared error", caption=found.protocol)
    for column in ("method", "before", "after 1 step", "after 5 steps"):
        result.add_column(column, justify="left" if column == "method" else "right")
    for name, row in found.rows.items():
        result.add_row(name, *[f"{row[steps][0]:.3f} ± {row[steps][1]:.3f}" for steps in ("0", "1", "5")])
    return result

"""Tables for the terminal, from the results that a run keeps."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from metapeft.episodes.protocol import Protocol

Found = dict[str, Any]


def percent(value: float, half: float, sign: bool = False) -> str:
    """`91.20 ± 0.60`, in percent.

    Example:
        >>> percent(0.912, 0.006)
        '91.20 ± 0.60'
    """
    return f"{100 * value:{'+' if sign else ''}.2f} ± {100 * half:.2f}"


def accuracy(cell: Found) -> str:
    """A cell of the accuracy table, with the number of episodes in which adaptation diverged.

    Example:
        >>> accuracy({"accuracy": 0.9, "ci95": 0.01, "diverged": 2})
        '90.00 ± 1.00 (2 diverged)'
    """
    lost = cell.get("diverged", 0)
    return percent(cell["accuracy"], cell["ci95"]) + (f" ({lost} diverged)" if lost else "")


def inner_steps(row: Found) -> str:
    """The numbers of inner steps that validation chose, by column.

    Example:
        >>> chosen = {"plain": {"steps": 5}, "shifted": {"steps": 10}}
        >>> inner_steps({"columns": chosen, "chosen": chosen})
        '5 / 10'
    """
    steps = [str(row["chosen"][column]["steps"]) for column in row["columns"] if column in row["chosen"]]
    return " / ".join(steps) or "-"


def protocol_line(found: Found) -> str:
    """The protocol that all numbers of the table share."""
    row = next(iter(found["rows"].values()))
    lines = [
        Protocol.from_dict({**cell["protocol"], "inner_steps": None, "head": None})
        for cell in row["columns"].values()
    ]
    return "; ".join(str(line) for line in lines)


def tables(found: Found) -> list[Table]:
    """All tables of a run."""
    shown = [
        table(found),
        *[differences_table(found, name) for name, rows in found["differences"].items() if rows],
    ]
    return [*shown, sinusoid_table(found)] if "sinusoid" in found else shown


def table(found: Found) -> Table:
    """Accuracy by method and column, with inner steps and the numbers of a task."""
    columns = list(next(iter(found["rows"].values()))["columns"])
    result = Table(
        title="accuracy in %, mean ± half-width of the 95 % t-interval", caption=protocol_line(found)
    )
    result.add_column("method")
    for column in columns:
        result.add_column(column, justify="right")
    result.add_column("inner steps", justify="right")
    result.add_column("numbers a task", justify="right")
    for name, row in found["rows"].items():
        cells = [accuracy(row["columns"][column]) for column in columns]
        result.add_row(name, *cells, inner_steps(row), str(row["parameters"]))
    return result


def differences_table(found: Found, reference: str) -> Table:
    """Paired differences against one method, in points."""
    rows = found["differences"][reference]
    columns = list(next(iter(rows.values()))) if rows else []
    result = Table(title=f"difference to {reference} in points, paired over the same episodes")
    result.add_column("method")
    for column in columns:
        result.add_column(column, justify="right")
    for name, cells in rows.items():
        result.add_row(name, *[percent(cells[column][0], cells[column][1], sign=True) for column in columns])
    return result


def sinusoid_table(found: Found) -> Table:
    """Mean squared error before and after adaptation."""
    rows = found["sinusoid"]["rows"]
    result = Table(title="sinusoid regression: mean squared error", caption=found["sinusoid"]["protocol"])
    for column in ("method", "before", "after 1 step", "after 5 steps"):
        result.add_column(column, justify="left" if column == "method" else "right")
    for name, row in rows.items():
        result.add_row(name, *[f"{row[steps][0]:.3f} ± {row[steps][1]:.3f}" for steps in ("0", "1", "5")])
    return result

"""The data beside each figure: one row a point, seven columns, the same for every sweep."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metapeft.base.files import write_atomically
from metapeft.base.reading import MOST_JSON, check_file, reading
from theory.models.problems import Array

EXACT = "exact"  # the step of a row that an exact solver made


class Row(NamedTuple):
    """One point.

    Args:
        sweep: name of the sweep.
        value: of the swept quantity.
        method: `sr+lora`, `lora-ml`, ...
        run: the draw, from 0.
        step: of fine-tuning, or `"exact"`.
        loss: squared error to the noise-free targets, summed over the inputs of the test task.
        population: `||W* - A - U V^T||_F^2`, without 1/2.
    """

    sweep: str
    value: float
    method: str
    run: int
    step: int | str
    loss: float
    population: float


def write(rows: Iterable[Row], path: Path) -> None:
    """Write rows as CSV with a header; numbers in full precision."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_atomically(path, file.getvalue().encode())


def read(path: Path) -> list[Row]:
    """What `write` wrote; ValueError for another file."""
    with reading(path):
        check_file(path, MOST_JSON)
        head, *lines = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        if tuple(head) != Row._fields:
            raise ValueError(f"it has the columns {head}")
        found = []
        for sweep, value, method, run, step, loss, population in lines:
            at = step if step == EXACT else int(step)
            found.append(Row(sweep, float(value), method, int(run), at, float(loss), float(population)))
        return found


def exact(rows: Iterable[Row], method: str, column: str = "loss") -> dict[float, Array]:
    """The exact end points of one method, value -> `(runs,)`, values rising."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.method == method and row.step == EXACT:
            found.setdefault(row.value, []).append(getattr(row, column))
    return {value: np.array(found[value]) for value in sorted(found)}


def curves(rows: Iterable[Row], method: str, value: float) -> list[tuple[Array, Array]]:
    """The fine-tuning curves of one method at one value, a `(steps, losses)` pair for each run."""
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        if row.method == method and row.value == value and not isinstance(row.step, str):
            found.setdefault(row.run, []).append((row.step, row.loss))
    return [tuple(np.array(sorted(points), dtype=float).T) for points in found.values()]

"""The three CSV files of Ravi and Larochelle (2017): read, and compared with what was published."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metapeft.base.errors import DataError
from metapeft.base.reading import check_file, reading
from metapeft.datasets.published import SHORT, lines_hash, table

PER_CLASS = 600
_MOST = 2**26  # bytes


class Row(NamedTuple):
    """An image and its class, and where they stand in the file."""

    name: str
    label: str
    line: int


def read_rows(file: Path, split: str, classes: Sequence[str], per_class: int | None) -> list[Row]:
    """The rows of a split's file, in order.

    With `per_class=600` and the published classes they must be the published rows: their SHA-256 says so.

    Raises:
        DataError: for a file that is missing, no such table, or lists something else; names the line or class.
    """
    if not file.is_file():
        raise DataError(f"there is no {file}: put Ravi and Larochelle's {split}.csv there, beside images/")
    rows = _parsed(file, split)
    counts = Counter(row.label for row in rows)
    foreign, missing = sorted(set(counts) - set(classes)), sorted(set(classes) - set(counts))
    if foreign or missing:
        raise DataError(
            f"{file} is not Ravi and Larochelle's {split} split: of {len(classes)} classes {len(missing)} "
            f"are missing ({', '.join(missing[:3]) or 'none'}), and {len(foreign)} are foreign "
            f"({', '.join(foreign[:3]) or 'none'})"
        )
    for label, count in counts.items():
        if per_class is not None and count != per_class:
            raise DataError(
                f"{file} lists {count} images of class {label} instead of {per_class}; "
                "per_class=None takes what is there"
            )
    if len({row.name for row in rows}) != len(rows):
        raise DataError(f"{file} lists a file name twice")
    if per_class == PER_CLASS:
        _check_published(file, split, classes, rows)
    return rows


def _parsed(file: Path, split: str) -> list[Row]:
    with reading(file, DataError):
        check_file(file, _MOST)
        content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} is no text in UTF-8 (line {line}, byte {error.start}): is it a binary file under that "
            f"name, or saved in another encoding? Put Ravi and Larochelle's {split}.csv there"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        head = next(reader, [])
        if not {"filename", "label"} <= set(head):
            raise DataError(f"{file} must begin with the columns filename,label, not {_shortened(head)}")
        name, label = head.index("filename"), head.index("label")
        rows = []
        for row in reader:
            if not row:  # an empty line
                continue
            if len(row) <= max(name, label) or not row[name] or not row[label]:
                raise DataError(
                    f"{file} has no filename or no label in line {reader.line_num}: {_shortened(row)}; was it "
                    f"cut short or edited? Put Ravi and Larochelle's {split}.csv there"
                )
            rows.append(Row(row[name], row[label], reader.line_num))
    except csv.Error as error:
        raise DataError(
            f"{file} is no CSV file (line {reader.line_num}: {error}): put Ravi and Larochelle's {split}.csv there"
        ) from None
    return rows


def _shortened(row: Sequence[str], most: int = 80) -> str:
    return text if len(text := repr(list(row))) <= most else f"{text[:most]}..."


def _check_published(file: Path, split: str, classes: Sequence[str], rows: Sequence[Row]) -> None:
    """Raises DataError that says where the rows differ; classes of one's own have nothing to compare with."""
    stored = table("miniimagenet")
    if list(classes) != stored[split].split():
        return
    found = lines_hash(f"{row.name},{row.label}" for row in rows)
    if found == stored["sha256"][split]:
        return
    beginning = f"{file} is not Ravi and Larochelle's {split} split, though its classes and counts are: "
    ending = f"Put their {split}.csv there again; per_class=None takes what is there"
    for row in rows:  # every published name begins with its class
        if not row.name.startswith(row.label):
            raise DataError(
                f"{beginning}line {row.line} gives {row.name} the label {row.label}; were labels exchanged, or "
                f"one column sorted without the other? {ending}"
            )
    hashes = stored["sha256"]["classes"]
    other = []
    for label in classes:
        names = sorted(row.name for row in rows if row.label == label)
        if lines_hash(names)[:SHORT] != hashes[label]:
            other.append(label)
    if other:
        raise DataError(
            f"{beginning}the file names of {len(other)} classes differ ({', '.join(other[:3])}); are they of "
            f"another version of miniImageNet, with other images or names? {ending}"
        )
    raise DataError(
        f"{beginning}the rows are the published ones, but in another order (SHA-256 {found[:SHORT]}), so that "
        f"the same seed would draw other images; was it sorted? {ending}"
    )

"""Labelled texts in a file: JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metapeft.base.errors import DataError


def read_text_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of `text`, `label` and, for pairs of sentences, `text_pair`.

    Args:
        path: `.jsonl`, an object a line, or `.csv` with a first line of names.

    Raises:
        DataError: no such file, another kind of file, a row without text or label, with its line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "train.jsonl")
        ...     _ = file.write_text('{"text": "a fine film", "label": "good"}')
        ...     read_text_rows(file)
        [{'text': 'a fine film', 'label': 'good'}]
    """
    if path.suffix not in (".jsonl", ".csv"):
        raise DataError(f"{path}: allowed are .jsonl, an object a line, and .csv with a line of names")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                rows: list[Any] = list(csv.DictReader(file))
            else:
                rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{path} has no rows")
    for number, row in enumerate(rows, 1):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("text"), str)
            or row.get("label") in (None, "")
        ):
            raise DataError(f"{path}: row {number} needs a text and a label, it is {str(row)[:80]}")
    return rows


def class_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The labels in order, numbers by their size.

    Example:
        >>> class_names([{"label": 10}, {"label": 9}, {"label": 10}])
        ['9', '10']
    """
    names = {str(row["label"]) for row in rows}
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))

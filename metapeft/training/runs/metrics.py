"""The rows of metrics.jsonl, read, and held against what a checkpoint knows of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metapeft.base.errors import RunError
from metapeft.base.reading import MOST_JSON, check_file, reading

_log = logging.getLogger("metapeft")


def read(path: Path) -> list[dict[str, Any]]:
    """All rows; a last line that was cut short by a kill is left out. A file that is missing has none.

    Raises:
        RunError: if any other line is not JSON, or has no step.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    with reading(path):
        check_file(path, MOST_JSON)
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RunError(f"{path} is damaged: line {number}: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise RunError(f"{path} is damaged: line {number} has no step")
            rows.append(row)
    return rows


def known(rows: Sequence[str], step: Any) -> dict[str, Any]:
    """What the checkpoint of a step keeps of the rows up to it.

    Example:
        >>> known(['{"step": 1}', '{"step": 2}'], 1)["rows"]
        1
    """
    before = rows if step is None else [row for row in rows if json.loads(row)["step"] <= step]
    return {"rows": len(before), "rows_sha256": _digest(before)}


def check(path: Path, rows: Sequence[Mapping[str, Any]], said: Mapping[str, Any]) -> None:
    """Raise RunError where the first rows are not those that a checkpoint knows; a run of 0.2 knows of none.

    A file that is gone is begun anew, and the log says so.
    """
    count = said.get("rows")
    if not isinstance(count, int) or isinstance(count, bool):
        return
    if not path.exists() and count:
        _log.warning("%s is gone, of which the last checkpoint knows %d rows", path, count)
    if path.exists() and _digest([json.dumps(row) for row in rows[:count]]) != said.get("rows_sha256"):
        raise RunError(
            f"{path} is damaged, or was changed: its first {count} rows are not those that the last checkpoint "
            "knows. Put them back, or remove the file, and it is begun anew"
        )


def _digest(rows: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()

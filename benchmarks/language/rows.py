"""Rows of the language tables: a JSON file each, written once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metapeft.base.files import write_atomically
from metapeft.training.runs.environment import environment

RESULTS = Path(__file__).parent.parent / "results" / "language"


def file_of(*parts: object) -> Path:
    """The file of a row.

    Example:
        >>> file_of("glue", "mrpc", "fisher", 0).name
        'glue-mrpc-fisher-0.json'
    """
    return RESULTS / f"{'-'.join(map(str, parts))}.json"


def kept(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a row is there.

    Raises:
        ValueError: one of other settings.
    """
    if not path.exists():
        return False
    before = json.loads(path.read_text(encoding="utf-8"))["settings"]
    wanted = json.loads(json.dumps(settings))
    for name in before.keys() | wanted.keys():
        if before.get(name) != wanted.get(name):
            raise ValueError(
                f"{path.name} was measured with {name}={before.get(name)!r}, not {wanted.get(name)!r}: remove it, or "
                "leave the option out"
            )
    return True


def write(path: Path, settings: dict[str, Any], row: dict[str, Any]) -> None:
    """Write a row with its settings and what it ran on, and print its score."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {**row, "settings": settings, "environment": environment()}
    write_atomically(path, f"{json.dumps(found)}\n".encode())
    print(f"{path.stem}: {row.get('score')}", flush=True)


def rows(kind: str, folder: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """All rows of a table, by file name."""
    for path in sorted(folder.glob(f"{kind}-*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))

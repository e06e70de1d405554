"""Hashes of what was published, to tell it from what lies on disk without shipping any of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

SHORT = 16
"""Hexadecimal digits of the hashes that only say where a difference lies."""


def table(name: str) -> dict[str, Any]:
    """The facts of a data set that the package ships, `splits/<name>.json`."""
    text = resources.files("metapeft.datasets").joinpath(f"splits/{name}.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def lines_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, each ended by one newline whatever ended it on disk.

    Example:
        >>> lines_hash(["a", "b"])[:16]
        '911169ddaaf146af'
    """
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()

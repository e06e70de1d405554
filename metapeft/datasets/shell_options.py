"""Options of a data set's reader as the shell gives them. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def reader_options(pairs: Sequence[str], root: Path | None = None) -> dict[str, Any]:
    """`name=value` texts as keywords of `load_dataset`, which checks them; a value is JSON, or else a text.

    Raises:
        ValueError: a text without `=`, a name that is given twice.

    Example:
        >>> reader_options(["split_by=characters", "size=32", "rotations=false"])
        {'split_by': 'characters', 'size': 32, 'rotations': False}
    """
    found: dict[str, Any] = {} if root is None else {"root": root}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise ValueError(f"data_options has {pair!r}: name=value is needed, such as split_by=characters")
        if name in found or name in ("root", "split"):
            raise ValueError(f"data_options has {name!r}, which is given already or has an option of its own")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found

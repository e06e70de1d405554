"""Data sets that are made here, and read from nowhere."""

from __future__ import annotations

import os


def refuse_root(name: str, root: str | os.PathLike[str] | None, why: str = "which is embedded") -> None:
    """Raise ValueError where a folder is given for a data set that has none.

    Example:
        >>> refuse_root("glyphs", "data")
        Traceback (most recent call last):
        ValueError: root has no effect on 'glyphs', which is embedded: leave out 'data'
    """
    if root is not None:
        raise ValueError(f"root has no effect on {name!r}, {why}: leave out {os.fspath(root)!r}")

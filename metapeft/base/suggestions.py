"""The nearest name to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: the nearest one that is known; empty where none is near.

    Example:
        >>> did_you_mean("unrol", ["cg", "unroll"]), did_you_mean("x", ["cg"])
        ("; did you mean 'unroll'?", '')
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

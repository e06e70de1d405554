"""Whole numbers among the options of the shell. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter, Token


def whole(kind: type, tokens: Sequence[Token]) -> int:
    """A whole number; what cyclopts would round is refused.

    Raises ValueError: `5.5`.
    """
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from None


Whole = Annotated[int, Parameter(converter=whole)]

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


def whole_or_rest(kind: type, tokens: Sequence[Token]) -> int | str:
    """A whole number, or the word `rest`.

    Raises ValueError: `all`.
    """
    return "rest" if tokens[0].value == "rest" else whole(kind, tokens)


WholeOrRest = Annotated[int | str, Parameter(converter=whole_or_rest)]

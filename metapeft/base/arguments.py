"""Arguments that are refused at the edge: by name and value, with what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeGuard

LARGEST = 2**63 - 1  # what a signed word of 64 bits holds


def is_whole(value: object, least: int | None = 1, most: int | None = None, /) -> TypeGuard[int]:
    """Whether something is a whole number of Python of at least `least` and at most `most`; True and False are none.

    Example:
        >>> is_whole(3), is_whole(True), is_whole(3.0), is_whole(3, 0, 2)
        (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return (least is None or value >= least) and (most is None or value <= most)


def whole(least: int | None = 1, most: int | None = None, /, *, more: str = "", **given: object) -> None:
    """Raise ValueError for the first argument that is no whole number of at least `least` and at most `most`.

    Args:
        least, most: the bounds; None for none.
        more: the end of the sentence: what else is allowed, or why.
        given: values by name.

    Example:
        >>> whole(1, steps=3, groups=0)
        Traceback (most recent call last):
        ValueError: groups=0: allowed is a whole number of at least 1
        >>> whole(8, 56, size=57)
        Traceback (most recent call last):
        ValueError: size=57: allowed is a whole number from 8 to 56
    """
    for name, value in given.items():
        if not is_whole(value, least, most):
            bound = "" if least is None else f" of at least {least}"
            if most is not None:
                bound = f" from {least} to {'2^63 - 1' if most == LARGEST else most}"
            raise ValueError(f"{name}={value!r}: allowed is a whole number{bound}{_end(more)}")


def number(
    least: float = 0,
    below: float | None = None,
    /,
    *,
    above: bool = False,
    more: str = "",
    **given: object,
) -> None:
    """Raise ValueError for the first argument that is no finite number of at least `least` and below `below`.

    Args:
        least: the lowest. below: what the number stays below; None for any.
        above: the number has to be above `least`.
        more: the end of the sentence: what else is allowed, or why.
        given: values by name.

    Example:
        >>> number(0, above=True, clip="1")
        Traceback (most recent call last):
        ValueError: clip='1': allowed is a finite number above 0
        >>> number(0, 1, momentum=1.0)
        Traceback (most recent call last):
        ValueError: momentum=1.0: allowed is a finite number of at least 0 and below 1
    """
    for name, value in given.items():
        fits = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (value > least or (value == least and not above))
            and (below is None or value < below)
        )
        if not fits:
            bound = f" above {least}" if above else f" of at least {least}"
            bound += "" if below is None else f" and below {below}"
            raise ValueError(f"{name}={value!r}: allowed is a finite number{bound}{_end(more)}")


def _end(more: str) -> str:
    return f", {more}" if more else ""


def plain(value: object) -> Any:
    """A whole number of NumPy as one of Python; anything else as it is.

    Example:
        >>> import numpy as np
        >>> plain(np.int64(3)), plain(2.5)
        (3, 2.5)
    """
    return value if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def seed_number(seed: object) -> None:
    """Raise ValueError for what is no seed.

    Example:
        >>> seed_number(1.5)
        Traceback (most recent call last):
        ValueError: seed=1.5: allowed is a whole number from 0 to 2^63 - 1
    """
    whole(0, LARGEST, seed=seed)


def flag(**given: object) -> None:
    """Raise ValueError for the first argument that is neither True nor False.

    Example:
        >>> flag(rotations="no")
        Traceback (most recent call last):
        ValueError: rotations='no': allowed are True and False
    """
    for name, value in given.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: allowed are True and False")


def floating(dtype: object) -> None:
    """Raise ValueError for a dtype that weights cannot have; None passes.

    Example:
        >>> import torch
        >>> floating(torch.int32)
        Traceback (most recent call last):
        ValueError: dtype=torch.int32: allowed are torch's floating types, such as torch.float32, and None
    """
    import torch  # here, for the shell and the linear theory check their numbers without it

    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"dtype={dtype!r}: allowed are torch's floating types, such as torch.float32, and None"
        )


def by_name(what: str, /, **given: object) -> None:
    """Raise ValueError for the first argument that is no dict, or whose keys are no names.

    Example:
        >>> by_name("tensors", factors=3)
        Traceback (most recent call last):
        ValueError: factors is of type int: a dict, name -> tensors, is needed
    """
    for name, value in given.items():
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name} is of type {type(value).__name__}: a dict, name -> {what}, is needed")

"""Arguments that are refused at the edge: by name and value, with what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def whole(least: int = 1, /, **given: object) -> None:
    """Raise ValueError for the first argument that is no whole number of at least `least`.

    Example:
        >>> whole(1, steps=3, groups=0)
        Traceback (most recent call last):
        ValueError: groups=0: allowed is a whole number of at least 1
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: allowed is a whole number of at least {least}")


def number(least: float = 0, /, *, above: bool = False, **given: object) -> None:
    """Raise ValueError for the first argument that is no finite number of at least `least`, or above it.

    Example:
        >>> number(0, above=True, clip="1")
        Traceback (most recent call last):
        ValueError: clip='1': allowed is a finite number above 0
    """
    for name, value in given.items():
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or value < least or (above and value == least):  # type: ignore[operator]
            bound = f"above {least}" if above else f"of at least {least}"
            raise ValueError(f"{name}={value!r}: allowed is a finite number {bound}")


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


def seed_number(seed: object) -> None:
    """Raise ValueError for what is no seed.

    Example:
        >>> seed_number(1.5)
        Traceback (most recent call last):
        ValueError: seed must be an integer from 0 to 2^63 - 1, not 1.5
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2^63 - 1, not {seed!r}")


def floating(dtype: object) -> None:
    """Raise ValueError for a dtype that weights cannot have; None passes.

    Example:
        >>> floating(torch.int32)
        Traceback (most recent call last):
        ValueError: dtype=torch.int32: allowed are torch's floating types, such as torch.float32, and None
    """
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

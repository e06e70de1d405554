"""What families of made-up tasks share: a stream of keys a split, and numbers out of uniform ones."""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from metapeft.base import counter

Floats = NDArray[np.float64]


def of_split(keys: counter.Words, split: str) -> counter.Words:
    """A key a task: each split is a stream of tasks of its own."""
    return counter.child(keys, np.array([zlib.crc32(split.encode())], dtype=np.uint64))


def spread(uniform: Floats, bounds: tuple[float, float]) -> Floats:
    """Uniform in `low .. high` from uniform in [0, 1).

    Example:
        >>> spread(np.array([0.0, 0.5]), (-3.0, 1.0)).tolist()
        [-3.0, -1.0]
    """
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def either_sign(uniform: Floats, bounds: tuple[float, float]) -> Floats:
    """Uniform in `low .. high` or in `-high .. -low`, each half of the time, from uniform in [0, 1).

    Example:
        >>> either_sign(np.array([0.0, 0.25, 0.5, 0.75]), (1.0, 3.0)).tolist()
        [-3.0, -2.0, 1.0, 2.0]
    """
    centred = 2 * uniform - 1
    return np.where(centred < 0, -1.0, 1.0) * spread(np.abs(centred), bounds)


def normal(first: Floats, second: Floats) -> Floats:
    """Standard normal numbers, each from two uniform ones in [0, 1) (Box and Muller 1958)."""
    found: Floats = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * math.pi * second)
    return found

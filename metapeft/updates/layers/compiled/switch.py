"""Whether this process computes with compiled kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from metapeft.updates.layers.compiled import compiler as building

_on = False  # for all threads of the process
_loaded: ctypes.CDLL | None = None


def use_compiled(on: bool = True) -> None:
    """Compute with compiled kernels from now on where they fit, or in plain torch again.

    They stand for convolutions of 3x3 with batch norm, ReLU and 2x2 max-pooling behind them in a `Sequential`, on a
    CPU, with updates of every format, in float32 and float64; and in bfloat16, under autocast, on statistics of the
    batch without updates, if the processor has products of it. Everything else is as before. Results differ by
    rounding. The first use compiles them, in some twenty seconds, and keeps the result. What it brings: docs/speed.md.

    Args:
        on: whether to use them.

    Raises:
        OSError: no C++ compiler, or one that fails.

    Example:
        >>> use_compiled()  # doctest: +SKIP
    """
    global _on, _loaded
    if on and _loaded is None:
        _loaded = ctypes.CDLL(str(building.library()))
    _on = on


def in_use() -> bool:
    """Whether compiled kernels are used where they fit."""
    return _on


def loaded() -> ctypes.CDLL:
    """The library, also while it is switched off: what was begun with it ends with it."""
    if _loaded is None:
        raise RuntimeError("compiled kernels are not loaded")
    return _loaded


@contextmanager
def compiled_used(on: bool) -> Iterator[None]:
    """As `use_compiled`, for a while.

    Example:
        >>> with compiled_used(False):
        ...     in_use()
        False
    """
    before = _on
    use_compiled(on)
    try:
        yield
    finally:
        use_compiled(before)

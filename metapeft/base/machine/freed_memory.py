"""Memory that was freed stays with the process: large tensors come again, step after step, in the same sizes.

glibc gives each block of more than 32 MiB back to the system at once, and takes it anew, page by page and filled
with zeros, for the next tensor of that size.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_NEVER = -1  # the largest number there is: 2**31 - 1 would trim a heap that is free by 2 GiB
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
# Its defaults; the thresholds are those up to which it moves them by itself, once a block of 32 MiB was freed. The last
# is refused on 32-bit systems.
_LEAVE = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25}

_lock = threading.Lock()
_inside = 0  # scopes that are open
_for_a_while = False  # whether they changed the settings
_for_good = False


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of handing it back; False where the C library has no such setting.

    The process then holds what it held at its peak, unless the environment says what glibc shall do with large blocks:
    then False, and nothing changes. `BilevelTrainer` and `pretrain` do this while they train;
    `metapeft train` and `bench`, for good. What it brings: docs/speed.md.
    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.

    Example:
        >>> keep_freed_memory()  # doctest: +SKIP
        True
    """
    global _for_good
    with _lock:
        _for_good = _for_good or (not _said() and _set(_KEEP))
        return _for_good


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """As `keep_freed_memory`, for a while: then it is as glibc by itself comes to be, and what is free is given back.

    Settings of the user's, by `keep_freed_memory` or in the environment, stay as they are.

    Example:
        >>> with freed_memory_kept():
        ...     pass
    """
    global _inside, _for_a_while
    with _lock:
        _inside += 1
        if _inside == 1:
            _for_a_while = not (_for_good or _said()) and _set(_KEEP)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _for_a_while and not _for_good:
                _set(_LEAVE)
                give_back()


def give_back() -> None:
    """Hand pages that the C library holds free to the system."""
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def _said() -> bool:
    """Whether the environment says what glibc shall do with large blocks."""
    said = [name for name in os.environ if name.startswith("MALLOC_")]
    said += os.environ.get("GLIBC_TUNABLES", "").split(":")
    return any(word in each.lower() for each in said for word in ("mmap", "trim"))


def _set(options: dict[int, int]) -> bool:
    mallopt = _libc("mallopt")
    return mallopt is not None and all(mallopt(option, value) for option, value in options.items())


def _libc(name: str) -> Any:
    """A function of glibc; None elsewhere: musl has neither."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

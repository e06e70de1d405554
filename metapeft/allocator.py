"""Memory that was freed stays with the process: large tensors come again, step after step, in the same sizes.

glibc gives each block of more than 32 MiB back to the system at once, and takes it anew, page by page and filled
with zeros, for the next tensor of that size.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of handing it back; False where the C library has no such setting.

    A training step on images of 84x84 takes about a fifth less time (docs/speed.md). The process then holds what it
    held at its peak. `metapeft train` and `bench` do this; a library must not do it to its caller unasked.
    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.

    Example:
        >>> keep_freed_memory()  # doctest: +SKIP
        True
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))

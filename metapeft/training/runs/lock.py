"""A lock file that one process holds, and that the system frees when the process dies, however it dies."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TextIO

from filelock import lock_descriptor

from metapeft.base.errors import RunError

_held: weakref.WeakSet[TextIO] = weakref.WeakSet()
# Windows locks the first byte, which nobody else may read then: the number stands behind it
_LOCKED = " "


def take(path: Path) -> TextIO:
    """Take the lock; it is held until the returned file is closed or the process ends.

    Args:
        path: the lock file, made if it is missing; it holds the number of the process that took it last.

    Raises:
        RunError: if it is held, by another process or by this one, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, take(Path(folder, ".lock")) as file:
        ...     int(Path(folder, ".lock").read_text()) == os.getpid()
        True
    """
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (it outlives this function)
    except OSError as error:
        raise RunError(f"{path.parent} cannot be written: {error.strerror or error}") from error
    try:
        free = lock_descriptor(file.fileno(), blocking=False)
        if free:
            file.truncate(0)
            file.write(f"{_LOCKED}{os.getpid()}")
            file.flush()
        else:
            file.seek(len(_LOCKED))
            holder = file.read().strip()
    except OSError as error:
        file.close()
        raise RunError(f"{path} cannot be locked: {error.strerror or error}") from error
    if not free:
        file.close()
        whose = "this process" if holder == str(os.getpid()) else f"process {holder or 'of unknown number'}"
        raise RunError(f"{path.parent} is in use by {whose}: wait for it, or end it")
    _held.add(file)
    return file


def _close_in_worker() -> None:
    """A forked worker has a copy of the open file, and would hold the lock if it outlived its parent."""
    for file in list(_held):
        file.close()


if hasattr(os, "register_at_fork"):  # Windows starts processes afresh
    os.register_at_fork(after_in_child=_close_in_worker)

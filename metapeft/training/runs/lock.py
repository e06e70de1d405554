"""A lock file that one process holds, and that the system frees when the process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from typing import TextIO

from metapeft.base.errors import RunError

_held: weakref.WeakSet[TextIO] = weakref.WeakSet()


def take(path: Path) -> TextIO:
    """Take the lock; it is held until the returned file is closed or the process ends.

    Args:
        path: the lock file, made if it is missing; it holds the number of the process that took it last.

    Raises:
        RunError: if it is held, by another process or by this one, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, take(Path(folder, ".lock")) as file:
        ...     Path(folder, ".lock").read_text() == str(os.getpid())
        True
    """
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (it outlives this function)
    except OSError as error:
        raise RunError(f"{path.parent} cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        if not isinstance(error, BlockingIOError):
            raise RunError(f"{path} cannot be locked: {error.strerror or error}") from error
        whose = "this process" if holder == str(os.getpid()) else f"process {holder or 'of unknown number'}"
        raise RunError(f"{path.parent} is in use by {whose}: wait for it, or end it") from error
    _held.add(file)
    return file


def _close_in_worker() -> None:
    """A forked worker has a copy of the open file, and would hold the lock if it outlived its parent."""
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_close_in_worker)

"""A lock file that one process holds, and that the system frees when the process dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import weakref
from pathlib import Path
from typing import TextIO

from filelock import lock_descriptor

from metapeft.base.errors import RunError
from metapeft.base.files import NO_LINK, process_lives

_log = logging.getLogger("metapeft")
_held: weakref.WeakSet[TextIO] = weakref.WeakSet()
# Windows locks the first byte, which nobody else may read then: the number stands behind it
_LOCKED = " "
# what systems say of a folder, often one of a network, that has no locks
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Lock:
    """What `take` took: a locked file, or where there are no locks a file that says whose the folder is.

    Args:
        file: the lock file, open. held: the other file; None where the system locks.
    """

    def __init__(self, file: TextIO, held: Path | None = None) -> None:
        self.file, self.held, self._process = file, held, os.getpid()

    def close(self) -> None:
        """Free it; a second call does nothing."""
        self.file.close()
        if self.held is not None and self._process == os.getpid():  # not a forked worker's
            self.held.unlink(missing_ok=True)
            self.held = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take(path: Path) -> Lock:
    """Take the lock; it is held until what is returned is closed or the process ends.

    Args:
        path: the lock file, made if it is missing, never opened through a link; it holds the number of the process
            that took it last.

    Raises:
        RunError: if it is held, by another process or by this one, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, take(Path(folder, ".lock")):
        ...     int(Path(folder, ".lock").read_text()) == os.getpid()
        True
    """
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunError(f"{path} is a link, through which no lock is taken: remove it") from error
        raise RunError(f"{path.parent} cannot be written: {error.strerror or error}") from error
    file = os.fdopen(opened, "r+", encoding="utf-8")
    held = None
    try:
        try:
            free = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            held = path.with_name(f"{path.name}.held")
            free = _marked(held, error)
        holder = _holder(file)
        if free:
            file.truncate(0)
            file.seek(0)
            file.write(f"{_LOCKED}{os.getpid()}")
            file.flush()
    except OSError as error:
        file.close()
        raise RunError(f"{path} cannot be locked: {error.strerror or error}") from error
    if not free:
        file.close()
        whose = "this process" if holder == str(os.getpid()) else f"process {holder or 'of unknown number'}"
        remedy = "" if held is None else f"; this folder has no locks: if that is not so, remove {held}"
        raise RunError(f"{path.parent} is in use by {whose}: wait for it, or end it{remedy}")
    _held.add(file)
    return Lock(file, held)


def _holder(file: TextIO) -> str:
    try:
        file.seek(len(_LOCKED))
        return file.read(30).strip()
    except UnicodeDecodeError:
        return ""


def _marked(held: Path, reason: OSError) -> bool:
    """Whether the folder is this process's now, by a file that only one can make; that of a dead process is removed."""
    own = f"{platform.node()} {os.getpid()}"
    for _ in range(2):
        try:
            opened = os.open(held, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)
        except FileExistsError:
            machine, _, process = held.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
            if machine != platform.node() or not process.isdecimal() or process_lives(int(process)):
                return False
            with contextlib.suppress(OSError):
                held.unlink()
            continue
        with os.fdopen(opened, "w", encoding="utf-8") as file:
            file.write(own)
        _log.warning(
            "%s is on a file system without locks (%s): %s says instead that it is in use. If this process is killed "
            "and another machine goes on, that file has to be removed first",
            held.parent, reason.strerror or reason, held.name,
        )  # fmt: skip
        return True
    return False


def _close_in_worker() -> None:
    """A forked worker has a copy of the open file, and would hold the lock if it outlived its parent."""
    for file in list(_held):
        file.close()


if hasattr(os, "register_at_fork"):  # Windows starts processes afresh
    os.register_at_fork(after_in_child=_close_in_worker)

"""Files that are written whole or not at all, and where those lie that may be made again."""

from __future__ import annotations

import os
from pathlib import Path

from metapeft.base.errors import RunError


def cache_folder() -> Path:
    """Where what can be made again is kept, `$XDG_CACHE_HOME/metapeft`, by default `~/.cache/metapeft`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "metapeft"


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that, whenever the process or the machine stops, the old or the new content is there.

    Args:
        path: the file; its folder must exist.
        content: all of it.

    Raises:
        RunError: if it cannot be written; the older file is untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/config.json", b"{}")
        ...     os.listdir(folder)
        ['config.json']
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")  # a move within one folder is atomic
    try:
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        if hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # the new name, too, must survive a power failure
            finally:
                os.close(folder)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; what was there is untouched"
        ) from error

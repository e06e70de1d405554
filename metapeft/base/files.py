"""Files that are written whole or not at all, and where those lie that may be made again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from metapeft.base.errors import RunError

#: opens no link, where the system knows how
NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
# `.NAME.MACHINE-PROCESS-RANDOM.partial`; before 0.3 `.NAME.partial`
_PARTIAL = re.compile(
    r"\.(?P<name>.+?)(?:\.(?P<machine>[0-9a-f]{6})-(?P<process>\d+)-[0-9a-f]{16})?\.partial"
)


def cache_folder() -> Path:
    """Where what can be made again is kept, `$XDG_CACHE_HOME/metapeft`, by default `~/.cache/metapeft`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "metapeft"


def partial_of(path: Path) -> Path:
    """A name beside `path` for what becomes it, which nobody can know before, and which says whose it is.

    Example:
        >>> made = partial_of(Path("run/config.json"))
        >>> made.parent, made.name.startswith(".config.json."), made != partial_of(Path("run/config.json"))
        (PosixPath('run'), True, True)
    """
    return path.with_name(f".{path.name}.{_HERE}-{os.getpid()}-{secrets.token_hex(8)}.partial")


def is_partial(name: str, of: str | None = None) -> bool:
    """Whether a file's name is that of something in the making, of any file or of one.

    Example:
        >>> is_partial(partial_of(Path("a.json")).name, "a.json"), is_partial("a.json")
        (True, False)
    """
    found = _PARTIAL.fullmatch(name)
    return found is not None and of in (None, found["name"])


def clear_partials(folder: Path, of: str | None = None) -> list[Path]:
    """Remove what processes of this machine that have died left half-made in a folder; returns it.

    Args:
        of: of this file or folder alone; None for any.
    """
    removed = []
    for path in folder.iterdir():
        found = _PARTIAL.fullmatch(path.name)
        if found is None or of not in (None, found["name"]) or path.is_symlink():
            continue
        if found["process"] is not None and (
            found["machine"] != _HERE or process_lives(int(found["process"]))
        ):
            continue
        with contextlib.suppress(OSError):  # another process may be as quick
            if path.is_dir():
                for below in sorted(path.rglob("*"), reverse=True):
                    below.rmdir() if below.is_dir() and not below.is_symlink() else below.unlink()
                path.rmdir()
            else:
                path.unlink()
            removed.append(path)
    return removed


def process_lives(process: int) -> bool:
    """Whether a process of this machine is there; in doubt it is."""
    if os.name == "nt":  # there a signal of 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of `path` when the block ends; raises OSError.

    Whenever the process or the machine stops, the old or the new content is there. What it is written to has a name
    that nobody can know before, and is a new file, never a link's; a link at `path` is replaced, not followed.
    """
    clear_partials(path.parent, path.name)
    partial = partial_of(path)  # a move within one folder is atomic
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power failure too."""
    if hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


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
    try:
        with replacing(Path(path)) as file:
            file.write(content)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; what was there is untouched"
        ) from error


def refuse_links(folder: Path) -> None:
    """Raise RunError for a link right in a folder whose files are all its own: it may lead anywhere."""
    try:
        links = sorted(entry.name for entry in os.scandir(folder) if entry.is_symlink())
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror or error}") from error
    if links:
        raise RunError(
            f"{folder / links[0]} is a link: a run folder holds files of its own, and a link in it may lead to any "
            "file of yours; remove it, or put what it leads to in its place"
        )

"""Decoded images, written once to a cache folder and mapped into memory from then on."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metapeft.base.errors import DataError
from metapeft.base.files import cache_folder, replacing
from metapeft.base.reading import check_file

Images = NDArray[np.uint8]
_DIGEST = 64  # characters of a SHA-256
log = logging.getLogger(__name__)


def cached_images(
    name: str, identity: Any, shape: tuple[int, ...], chunks: Callable[[], Iterable[Images]]
) -> Images:
    """A uint8 array of `shape`, decoded at the first call and memory-mapped (copy on write) at later ones.

    The file is written beside its final name and moved there when it is whole, so that a reader never sees
    half of it; it ends with its SHA-256, and a damaged file is written again. Where the cache folder cannot be
    written, or the disk is full, the array is decoded into memory instead, and a line in the log says so.

    Args:
        name: begins the file's name.
        identity: whatever the content depends on, of types that JSON has; another identity is another file.
        shape: `(images, channels, height, width)`.
        chunks: yields the images in order, in pieces along the first axis.
    """
    digest = hashlib.sha256(json.dumps([identity, shape], sort_keys=True).encode()).hexdigest()[:20]
    target, before = (cache_folder() / f"{name}-{digest}{end}.npy" for end in ("-sha256", ""))
    try:
        stored = _mapped(target, shape)
        if stored is None and not target.exists():  # 0.2 wrote no SHA-256
            stored = _mapped(before, shape, summed=False)
        if stored is None:
            _write(target, shape, chunks())
            stored = _mapped(target, shape)
        if stored is not None:
            return stored
    except OSError as error:
        log.warning("cannot use the cache %s (%s): decoding the images into memory", target, error)
    return np.concatenate(list(chunks()))


def _mapped(target: Path, shape: tuple[int, ...], summed: bool = True) -> Images | None:
    """The file, or None where it is missing or not what was written, byte for byte; `summed`: by its SHA-256."""
    try:
        size = check_file(target)
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return None
    head, count = _header(shape), math.prod(shape)
    if size != len(head) + count + (_DIGEST if summed else 0):
        return None
    with open(target, "rb") as file:
        if file.read(len(head)) != head:
            return None
    stored: Images = (
        np.memmap(target, np.uint8, "c", len(head), shape) if count else np.empty(shape, np.uint8)
    )
    if summed:
        with open(target, "rb") as file:
            file.seek(len(head) + count)
            if file.read() != hashlib.sha256(stored.data).hexdigest().encode():
                log.warning("%s is damaged: the images are decoded anew", target)
                return None
    return stored


def _header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of an array in numpy's own format; any reader of it takes the file."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _write(target: Path, shape: tuple[int, ...], chunks: Iterable[Images]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{os.strerror(errno.EISDIR)}: {target}")
    digest = hashlib.sha256()
    # Plain writes, not a writable map: on a full disk they raise instead of killing the process.
    with replacing(target) as file:
        file.write(_header(shape))
        for chunk in chunks:
            data = np.ascontiguousarray(chunk).data
            file.write(data)
            digest.update(data)
        file.write(digest.hexdigest().encode())  # behind the array, where numpy does not look


def progress(items: Iterable[Any], text: str, total: int) -> Iterator[Any]:
    """Iterate with a progress bar on the error stream, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, text, total, console=console, transient=True, disable=not console.is_terminal)


def data_root(root: str | os.PathLike[str] | None, folder: str) -> Path:
    """`root`, or `$METAPEFT_DATA/<folder>` where it is None.

    A `root` that holds `folder` itself means that folder. Raises DataError where there is none.
    """
    if root is None:
        base = os.environ.get("METAPEFT_DATA", "")
        if not base:
            raise DataError(
                f"no place to read {folder} from: give root=, or set METAPEFT_DATA to the folder that holds "
                f"{folder}/"
            )
        root = Path(base) / folder
    path = Path(root)
    if (path / folder).is_dir():
        path = path / folder
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: put the data there, or give root=, or set METAPEFT_DATA")
    return path


def signature(paths: Iterable[str | os.PathLike[str]]) -> str:
    """A hash of names, sizes and times of change: it differs when a file was added, removed or replaced."""
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        digest.update(f"{os.fspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()

"""Decoded images, written once to a cache folder and mapped into memory from then on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metapeft.base.errors import DataError
from metapeft.base.files import cache_folder

Images = NDArray[np.uint8]
log = logging.getLogger(__name__)


def cached_images(
    name: str, identity: Any, shape: tuple[int, ...], chunks: Callable[[], Iterable[Images]]
) -> Images:
    """A uint8 array of `shape`, decoded at the first call and memory-mapped (copy on write) at later ones.

    The file is written beside its final name and moved there when it is whole, so that a reader never sees
    half of it; a damaged file is written again. Where the cache folder cannot be written, or the disk is
    full, the array is decoded into memory instead, and a line in the log says so.

    Args:
        name: begins the file's name.
        identity: whatever the content depends on, of types that JSON has; another identity is another file.
        shape: `(images, channels, height, width)`.
        chunks: yields the images in order, in pieces along the first axis.
    """
    digest = hashlib.sha256(json.dumps([identity, shape], sort_keys=True).encode()).hexdigest()[:20]
    target = cache_folder() / f"{name}-{digest}.npy"
    try:
        stored = _mapped(target, shape)
        if stored is None:
            _write(target, shape, chunks())
            stored = _mapped(target, shape)
        if stored is not None:
            return stored
    except OSError as error:
        log.warning("cannot use the cache %s (%s): decoding the images into memory", target, error)
    return np.concatenate(list(chunks()))


def _mapped(target: Path, shape: tuple[int, ...]) -> Images | None:
    """The file, or None where it is missing or damaged."""
    try:
        stored: Images = np.load(target, mmap_mode="c", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return stored if stored.shape == shape and stored.dtype == np.uint8 else None


def _write(target: Path, shape: tuple[int, ...], chunks: Iterable[Images]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".part")
    try:
        # Plain writes, not a writable map: on a full disk they raise instead of killing the process.
        with os.fdopen(handle, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
        os.replace(part, target)
    finally:
        Path(part).unlink(missing_ok=True)


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

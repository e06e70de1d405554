"""What `metapeft data import` writes: a folder with one array a split, mapped into memory as it is."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metapeft.base.errors import DataError
from metapeft.base.files import clear_partials, partial_of
from metapeft.datasets.forms.source import Content, Picture, Source

FOLDER, FORM = "store", "metapeft's store"
_LIST, _FORMAT = "store.json", "metapeft images 1"


def find(root: Path, split: str) -> Source | None:
    """The store below a folder, or None where there is none."""
    folder = root / FOLDER
    if not (folder / _LIST).is_file():
        return None
    if split not in _listed(folder):
        return None
    images = folder / f"{split}.npy"
    return Source(FORM, (folder / _LIST, images), lambda: _content(folder, split))


def block(root: Path, split: str) -> NDArray[np.uint8]:
    """The images of a split, `(images, 3, size, size)`, mapped copy on write; DataError where they are damaged."""
    file = root / FOLDER / f"{split}.npy"
    try:
        found: NDArray[np.uint8] = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is damaged ({error}): remove {file.parent} and import again") from None
    labels = _labels(root / FOLDER, split)
    if found.ndim != 4 or found.dtype != np.uint8 or len(found) != len(labels):
        raise DataError(f"{file} does not fit {_LIST}: remove {file.parent} and import again")
    return found


class Writer:
    """Writes the splits of a store that is being made."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._splits: dict[str, Any] = {}

    def add(
        self,
        split: str,
        classes: Sequence[str],
        labels: Sequence[int],
        size: int,
        chunks: Iterable[NDArray[np.uint8]],
    ) -> None:
        """Write one split: labels are places in classes, chunks its images `(n, 3, size, size)` in their order."""
        with open(self._folder / f"{split}.npy", "wb") as file:
            shape = (len(labels), 3, size, size)
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
            file.flush()
            os.fsync(file.fileno())
        self._splits[split] = {"classes": list(classes), "labels": list(labels)}

    def finish(self) -> None:
        """Write the list of what is there; without it nothing is read."""
        content = {"format": _FORMAT, "name": self._name, "splits": self._splits}
        (self._folder / _LIST).write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def made(root: Path, name: str) -> Iterator[Writer]:
    """A store of `root`, moved into place when it is whole; nothing of it is left behind if that fails.

    Raises:
        DataError: there is a store already, or the folder cannot be written.
    """
    target = root / FOLDER
    if target.exists():
        raise DataError(f"there is {target} already: remove it to import anew, or give another folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
        clear_partials(root, FOLDER)  # of an import that was killed
        part = partial_of(target)
        part.mkdir()
    except OSError as error:
        raise DataError(f"cannot write to {root} ({error.strerror or error}): give another folder") from None
    try:
        writer = Writer(part, name)
        yield writer
        writer.finish()
        os.rename(part, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise DataError(f"there is {target} already: another process was quicker") from error
        raise DataError(
            f"cannot write {target} ({error.strerror or error}); nothing is left of it"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _listed(folder: Path) -> dict[str, Any]:
    file = folder / _LIST
    try:
        content = json.loads(file.read_text("utf-8"))
        if content["format"] == _FORMAT:
            return dict(content["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{file} is damaged, or of another version: remove {folder} and import again")


def _labels(folder: Path, split: str) -> list[str]:
    listed = _listed(folder)[split]
    return [listed["classes"][label] for label in listed["labels"]]


def _content(folder: Path, split: str) -> Content:
    def pictures() -> Iterator[Picture]:
        yield from block(folder.parent, split).transpose(0, 2, 3, 1)

    return Content(_labels(folder, split), pictures, order=_listed(folder)[split]["classes"])

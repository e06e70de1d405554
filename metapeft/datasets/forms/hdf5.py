"""torchmeta's HDF5 files, with the JSON lists of classes beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metapeft.base.errors import DataError
from metapeft.datasets.forms.source import Content, Picture, Source, pixel_block

_AT_ONCE = 200  # images read together


def find(root: Path, split: str, folders: Sequence[str]) -> Source | None:
    """`train_data.hdf5` with `train_labels.json`, or `data.hdf5` with a folder of lists, as for CIFAR-100.

    Args:
        root: where to look; also in the folders below it.
        split: `"train"`, `"val"` or `"test"`.
        folders: names that torchmeta gives the data set's folder, or the folder of its lists.
    """
    for base in (root, *(root / folder for folder in folders)):
        for data, lists in ((base / f"{split}_data.hdf5", base), (base.parent / "data.hdf5", base)):
            labels = lists / f"{split}_labels.json"
            if data.is_file() and labels.is_file():
                return _source(data, labels)
            if data.is_file() and data.name != "data.hdf5":
                raise DataError(f"{data} has no list of its classes: {labels.name} is missing beside it")
    return None


def _source(data: Path, labels: Path) -> Source:
    return Source("torchmeta's HDF5", (data, labels), lambda: _content(data, labels))


def _content(data: Path, labels: Path) -> Content:
    names = class_list(labels)
    with _opened(data) as stored:
        nodes = {name: _node(stored, name, data) for name in names}
        counts = {name: len(node) for name, node in nodes.items()}
    return Content(
        [name.rpartition("/")[2] for name in names for _ in range(counts[name])],
        _pictures(data, names),
        order=[name.rpartition("/")[2] for name in names],
    )


def _pictures(data: Path, names: Sequence[str]) -> Callable[[], Iterator[Picture]]:
    def pictures() -> Iterator[Picture]:
        with _opened(data) as stored:
            for name in names:
                node = _node(stored, name, data)
                for start in range(0, len(node), _AT_ONCE):
                    try:
                        block = node[start : start + _AT_ONCE]
                    except OSError as error:
                        raise DataError(
                            f"{data} is damaged at class {name} ({error}): make it again"
                        ) from None
                    if node.dtype == object:  # encoded images of any length
                        yield from (np.asarray(one, dtype=np.uint8).tobytes() for one in block)
                    else:
                        yield from pixel_block(block, f"{data}: {name}")

    return pictures


def _opened(data: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError(f"reading {data} needs h5py: pip install 'metapeft[data]'") from None
    try:
        return h5py.File(data, "r")
    except OSError as error:
        raise DataError(
            f"{data} is no whole HDF5 file ({error}): was its download cut short? Make it again with torchmeta"
        ) from None


def _node(stored: Any, name: str, data: Path) -> Any:
    for path in (f"datasets/{name}", name):
        node = stored.get(path)
        if hasattr(node, "shape"):
            return node
    raise DataError(
        f"{data} has no class {name}, which its list names: was it renamed, or is it of another version?"
    )


def class_list(file: Path) -> list[str]:
    """The names of a list of classes, each a text or a path as a list of texts; DataError for anything else.

    Example:
        >>> class_list(Path("val_labels.json"))  # doctest: +SKIP
        ['n01855672', 'n02091244']
    """
    try:
        listed = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no whole JSON ({error}): make it again with torchmeta") from None
    names = ["/".join(map(str, one)) if isinstance(one, list) else one for one in listed or ()]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{file} must be a list of the names of classes")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{file} names class {twice} twice")
    return names

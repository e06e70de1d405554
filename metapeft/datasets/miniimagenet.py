"""miniImageNet: 100 classes of ImageNet, 600 images each (Vinyals et al. 2016; Ravi, Larochelle 2017)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from metapeft.base.arguments import whole
from metapeft.base.errors import DataError
from metapeft.datasets.decoding import decoded
from metapeft.datasets.images import ImageData, check_split
from metapeft.datasets.miniimagenet_rows import PER_CLASS, read_rows
from metapeft.datasets.published import table
from metapeft.datasets.store import Images, cached_images, data_root, progress, signature

# Mean and deviation of the training split at 84x84, measured on all of its pixels.
MEAN, DEVIATION = (0.47099, 0.45027, 0.40530), (0.27171, 0.26478, 0.27849)
_CHUNK = 200


def read_miniimagenet(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    size: int = 84,
    per_class: int | None = PER_CLASS,
) -> ImageData:
    """miniImageNet as uint8 `(images, 3, size, size)`, decoded once into a memory-mapped file in the cache
    folder.

    Args:
        root: the folder that holds `images/` and `train.csv`, `val.csv`, `test.csv` with the columns
            `filename,label`; None: `$METAPEFT_DATA/miniimagenet`.
        split: `"train"` (64 classes), `"val"` (16) or `"test"` (20).
        size: height and width in pixels; images of another size are scaled, with antialiasing.
        per_class: images that each class must have, to be sure that nothing is missing; 600 also wants the
            published rows in their order, told by SHA-256; None takes what is there.

    Raises:
        DataError: for a split file or images that are missing, incomplete or damaged.
        ValueError: for options that do not fit.

    Example:
        >>> read_miniimagenet("data/miniimagenet", "test")  # doctest: +SKIP
        ImageData(miniimagenet, test: 12000 images 3x84x84, 20 classes)
    """
    check_split(split)
    whole(8, size=size)
    folder = data_root(root, "miniimagenet")
    classes = class_names(split)
    rows = read_rows(folder / f"{split}.csv", split, classes, per_class)
    files = _find_images(folder / "images", [row.name for row in rows], split)

    def chunks() -> Iterator[Images]:
        starts = range(0, len(files), _CHUNK)
        for start in progress(starts, f"miniImageNet {split}", len(starts)):
            yield np.stack([decoded(file, size, 3) for file in files[start : start + _CHUNK]])

    shape = (len(files), 3, size, size)
    stored = cached_images(f"miniimagenet-{split}-{size}", signature(files), shape, chunks)
    labels = [classes.index(row.label) for row in rows]
    return ImageData(
        torch.from_numpy(stored), labels, classes, split, name="miniimagenet", mean=MEAN, deviation=DEVIATION
    )


def class_names(split: str) -> list[str]:
    """The WordNet ids of a split, in the order of its file."""
    return str(table("miniimagenet")[split]).split()


def _find_images(folder: Path, names: Sequence[str], split: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}: put the images of miniImageNet there, beside {split}.csv"
        )
    present = set(os.listdir(folder))
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images of the {split} split are missing from {folder}, "
            f"the first is {missing[0]}"
        )
    return [folder / name for name in names]

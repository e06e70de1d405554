"""miniImageNet: 100 classes of ImageNet, 600 images each (Vinyals et al. 2016; Ravi, Larochelle 2017)."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from metapeft.base.errors import DataError
from metapeft.datasets.facts import Facts
from metapeft.datasets.forms.source import Content, Picture, Source
from metapeft.datasets.found import Found, image_data, opened
from metapeft.datasets.images import SPLITS, ImageData, check_split
from metapeft.datasets.miniimagenet_rows import PER_CLASS, read_rows
from metapeft.datasets.published import lines_hash, table
from metapeft.datasets.sides import check_side
from metapeft.datasets.store import data_root

# Mean and deviation of the training split at 84x84, measured on all of its pixels.
MEAN, DEVIATION = (0.47099, 0.45027, 0.40530), (0.27171, 0.26478, 0.27849)
_REMEDY = "per_class=None takes what is there"
_log = logging.getLogger(__name__)


def read_miniimagenet(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    size: int = 84,
    per_class: int | None = PER_CLASS,
) -> ImageData:
    """miniImageNet as uint8 `(images, 3, size, size)`, decoded once into a memory-mapped file in the cache
    folder, from whichever form lies in `root`: docs/data.md has the table of forms.

    Args:
        root: the folder that holds `images/` and `train.csv`, `val.csv`, `test.csv` with the columns
            `filename,label`, or one of the other forms; None: `$METAPEFT_DATA/miniimagenet`.
        split: `"train"` (64 classes), `"val"` (16) or `"test"` (20).
        size: height and width in pixels; images of another size are scaled, with antialiasing.
        per_class: images that each class must have, to be sure that nothing is missing; 600 also wants the
            published rows of the CSV files in their order, told by SHA-256; None takes what is there.

    Raises:
        DataError: for a split file or images that are missing, incomplete or damaged, classes that are not the
            published ones, and pickles that want to run code.
        ValueError: for options that do not fit.

    Example:
        >>> read_miniimagenet("data/miniimagenet", "test")  # doctest: +SKIP
        ImageData(miniimagenet, test: 12000 images 3x84x84, 20 classes)
    """
    check_split(split)
    check_side(size)
    folder = data_root(root, "miniimagenet")
    return image_data(facts(), folder, open_split(folder, split, per_class), size)


def open_split(folder: Path, split: str, per_class: int | None = PER_CLASS) -> Found:
    """The split in whichever form lies in a folder, checked; see `read_miniimagenet`."""
    found = opened(facts(), folder, split, per_class, _REMEDY, functools.partial(_rows, per_class=per_class))
    if found.source.form == "class folders" and per_class == PER_CLASS:
        _check_names(found)
    return found


def facts() -> Facts:
    """What is known of miniImageNet."""
    classes = {split: class_names(split) for split in SPLITS}
    return Facts(
        "miniimagenet", "miniImageNet", {split: len(names) for split, names in classes.items()}, MEAN, DEVIATION,
        classes,
        pickles=("mini-imagenet-cache-{}.pkl", "miniImageNet_category_split_{}.pickle",
                 "miniImageNet_category_split_{0}_phase_{0}.pickle"),
        folders=("miniimagenet", "mini-imagenet", "images", "data"),
        places="; or images/ with Ravi and Larochelle's train.csv, val.csv and test.csv",
    )  # fmt: skip


def class_names(split: str) -> list[str]:
    """The WordNet ids of a split, in the order of its file."""
    return str(table("miniimagenet")[split]).split()


def _rows(folder: Path, split: str, per_class: int | None) -> Source | None:
    """The form of Ravi and Larochelle: CSV files beside a folder of images."""
    lists = [folder / f"{name}.csv" for name in SPLITS]
    images = folder / "images"
    flat = images.is_dir() and not any(path.is_dir() for path in images.iterdir())
    if not flat and not any(file.is_file() for file in lists):
        return None
    classes = class_names(split)
    rows = read_rows(folder / f"{split}.csv", split, classes, per_class)
    files = _find_images(images, [row.name for row in rows], split)

    def pictures() -> Iterator[Picture]:
        yield from files

    def content() -> Content:
        return Content([row.label for row in rows], pictures, [row.name for row in rows])

    return Source("images and CSV files", tuple(files), content)


def _check_names(found: Found) -> None:
    """Say it where the images of class folders are not named, and so perhaps not ordered, as published."""
    labels = [found.classes[place] for place in found.labels]
    rows = lines_hash(f"{name},{label}" for name, label in zip(found.names, labels))
    if rows != table("miniimagenet")["sha256"][found.split]:
        _log.warning(
            "the files of the %s split of miniImageNet are not named as in Ravi and Larochelle's list: images stand by "
            "name, and the same seed may draw others than from the CSV files", found.split,
        )  # fmt: skip


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

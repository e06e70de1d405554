"""CIFAR-FS, FC100, tieredImageNet and CUB, in the forms in which people have them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from metapeft.base.arguments import flag
from metapeft.datasets.facts import Facts
from metapeft.datasets.found import Found, image_data, opened
from metapeft.datasets.images import SPLITS, ImageData, check_split
from metapeft.datasets.published import table
from metapeft.datasets.sides import check_side
from metapeft.datasets.store import data_root

# Of the training images, as those who publish on these sets normalise them.
_CIFAR = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_REMEDY = "complete=False takes what is there"
Root = str | os.PathLike[str] | None


def read_cifar_fs(
    root: Root = None, split: str = "train", *, size: int = 32, complete: bool = True
) -> ImageData:
    """CIFAR-FS as uint8 `(images, 3, size, size)`: 64, 16 and 20 classes of CIFAR-100, 600 images each.

    Args:
        root: the folder that holds `CIFAR_FS_train.pickle` and its like, class folders (`cifar100/data/apple/`), or
            torchmeta's `data.hdf5` with `cifar-fs/train_labels.json`; None: `$METAPEFT_DATA/cifar-fs`.
        split: `"train"`, `"val"` or `"test"`.
        size: height and width in pixels.
        complete: False takes classes with fewer images too.

    Raises:
        DataError: for files that are missing, damaged or not what was published.
        ValueError: for options that do not fit.

    Example:
        >>> read_cifar_fs("data/cifar-fs", "val")  # doctest: +SKIP
        ImageData(cifar-fs, val: 9600 images 3x32x32, 16 classes)

    Source: Bertinetto et al. 2019 (arXiv 1805.08136).
    """
    return _read("cifar-fs", root, split, size, complete)


def read_fc100(
    root: Root = None, split: str = "train", *, size: int = 32, complete: bool = True
) -> ImageData:
    """FC100 as uint8 `(images, 3, size, size)`: 60, 20 and 20 classes of CIFAR-100 by superclass, 600 images each.

    Args:
        root: the folder that holds `FC100_train.pickle` and its like, class folders, or torchmeta's `data.hdf5` with
            `fc100/train_labels.json`; None: `$METAPEFT_DATA/fc100`.
        split: `"train"`, `"val"` or `"test"`.
        size: height and width in pixels.
        complete: False takes classes with fewer images too.

    Raises:
        DataError: for files that are missing, damaged or not what was published.
        ValueError: for options that do not fit.

    Example:
        >>> read_fc100("data/fc100", "test")  # doctest: +SKIP
        ImageData(fc100, test: 12000 images 3x32x32, 20 classes)

    Source: Oreshkin et al. 2018 (arXiv 1805.10123).
    """
    return _read("fc100", root, split, size, complete)


def read_tieredimagenet(
    root: Root = None, split: str = "train", *, size: int = 84, complete: bool = True
) -> ImageData:
    """tieredImageNet as uint8 `(images, 3, size, size)`: 351, 97 and 160 classes of ImageNet.

    Args:
        root: the folder that holds `train_images_png.pkl` and `train_labels.pkl` and their like, `train_images.npz`
            with the same labels, torchmeta's `train_data.hdf5` and `train_labels.json`, Parquet files, or
            `train/`, `val/` and `test/` with a folder a class; None: `$METAPEFT_DATA/tieredimagenet`.
        split: `"train"` (448,695 images), `"val"` (124,261) or `"test"` (206,209).
        size: height and width in pixels.
        complete: False takes fewer images too.

    Raises:
        DataError: for files that are missing or damaged, and for other numbers of classes and images. Names of classes
            are not checked.
        ValueError: for options that do not fit.

    Example:
        >>> read_tieredimagenet("data/tieredimagenet", "val")  # doctest: +SKIP
        ImageData(tieredimagenet, val: 124261 images 3x84x84, 97 classes)

    Source: Ren et al. 2018 (arXiv 1803.00676).
    """
    return _read("tieredimagenet", root, split, size, complete)


def read_cub(root: Root = None, split: str = "train", *, size: int = 84, complete: bool = True) -> ImageData:
    """CUB-200-2011 as uint8 `(images, 3, size, size)`: 100, 50 and 50 species of birds.

    Of the numbers that the names of the classes begin with, odd ones are training classes; of the even ones, those with
    remainder 2 by 4 are validation classes and multiples of 4 test classes.

    Args:
        root: the folder that holds `CUB_200_2011/images/001.Black_footed_Albatross/` and its like, or torchmeta's
            `train_data.hdf5` and `train_labels.json`; None: `$METAPEFT_DATA/cub`.
        split: `"train"`, `"val"` or `"test"`.
        size: height and width in pixels; images are squeezed to it.
        complete: True wants 41 to 60 images in each class, as there are; False takes what is there.

    Raises:
        DataError: for files that are missing, damaged or not what was published.
        ValueError: for options that do not fit.

    Example:
        >>> read_cub("data/cub", "test").classes[0]  # doctest: +SKIP
        '004.Groove_billed_Ani'

    Source: Wah et al. 2011; split: Chen et al. 2019 (arXiv 1904.04232).
    """
    return _read("cub", root, split, size, complete)


def open_split(name: str, folder: Path, split: str, complete: bool = True) -> Found:
    """A split of one of these sets in whichever form lies in a folder, checked."""
    known = facts(name)
    found = opened(known, folder, split, known.per_class if complete else None, _REMEDY)
    if complete:
        known.check_totals(folder, split, found.counts(), _REMEDY)
    return found


@functools.cache
def facts(name: str) -> Facts:
    """What is known of one of these sets."""
    if name in ("cifar-fs", "fc100"):
        classes = {split: str(table("cifar")[name][split]).split() for split in SPLITS}
        stem = "CIFAR_FS" if name == "cifar-fs" else "FC100"
        return Facts(
            name, stem.replace("_", "-"), {split: len(names) for split, names in classes.items()}, *_CIFAR, classes,
            per_class=600, pickles=(f"{stem}_{{}}.pickle", f"{stem}_{{}}.pkl"),
            folders=(name, "data", "cifar100/data", "cifarfs/processed", "cifar100", f"cifar100/{name}"),
        )  # fmt: skip
    if name == "tieredimagenet":
        return Facts(
            name, "tieredImageNet", {"train": 351, "val": 97, "test": 160}, *_IMAGENET,
            totals={"train": 448_695, "val": 124_261, "test": 206_209},
            pickles=("{}_images_png.pkl", "{}_images.npz"), folders=("tiered-imagenet", "tieredimagenet"),
        )  # fmt: skip
    return Facts(
        "cub", "CUB", {"train": 100, "val": 50, "test": 50}, *_IMAGENET, bounds=(41, 60), split_of=bird_split,
        folders=("CUB_200_2011/images", "images", "cub"),
    )  # fmt: skip


def bird_split(name: str) -> str | None:
    """The split of a species by the number that its name begins with; None for a name without one of 1 to 200.

    Example:
        >>> [bird_split(name) for name in ("001.Black_footed_Albatross", "002.Laysan_Albatross", "004.Ani", "others")]
        ['train', 'val', 'test', None]
    """
    number = name.partition(".")[0]
    if not number.isdecimal() or not 1 <= int(number) <= 200:
        return None
    return ("test", "train", "val", "train")[int(number) % 4]


def _read(name: str, root: Root, split: str, size: int, complete: bool) -> ImageData:
    check_split(split)
    check_side(size)
    flag(complete=complete)
    folder = data_root(root, name)
    return image_data(facts(name), folder, open_split(name, folder, split, complete), size)

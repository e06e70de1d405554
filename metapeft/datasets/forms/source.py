"""What a form on disk is to those who read it: its files, then its labels and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metapeft.base.errors import DataError

Picture = Path | bytes | NDArray[np.uint8]
"""A file to decode, the content of one, or pixels `(height, width, 3)`."""

ALIASES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""What files and folders call each split."""


@dataclass(frozen=True)
class Content:
    """A split as its form has it.

    Args:
        labels: the class of each image, by name.
        pictures: gives the images in that order; an image that is damaged is raised as a DataError when its turn comes.
        names: the file names of the images, where the form has them.
        order: names of the classes in an order that the form itself states; empty for none.
    """

    labels: list[str]
    pictures: Callable[[], Iterator[Picture]]
    names: Sequence[str] = ()
    order: Sequence[str] = ()


@dataclass(frozen=True)
class Source:
    """A form that was found: what it is called, its files (whose sizes and times tell its version), how it is read.

    `slow` says that even the labels are read only with all pixels.
    """

    form: str
    files: tuple[Path, ...]
    open: Callable[[], Content]
    slow: bool = False


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of some files that is there."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def pixel_block(value: Any, where: str, most: int | None = None) -> NDArray[np.uint8]:
    """uint8 images `(n, height, width, 3)`; what is grey or flat as CIFAR's rows is brought to it.

    Raises:
        DataError: another shape or type; names `where`.

    Example:
        >>> pixel_block(np.zeros((2, 3072), np.uint8), "batch").shape
        (2, 32, 32, 3)
    """
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim and len(value):
        if value.ndim == 2 and value.shape[1] == 3072:  # CIFAR's rows: all red, all green, all blue
            value = value.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if value.ndim == 4 and value.shape[3] == 3 and 0 not in value.shape:
            found: NDArray[np.uint8] = value
            return found
    what = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise DataError(f"{where} must be images as uint8 (images, height, width, 3), not {what}")


def numbered(labels: Sequence[int], split: str, names: Sequence[str] | None = None) -> list[str]:
    """Names for whole numbers: those that are given, else the split's name and the number.

    Example:
        >>> numbered([3, 0], "val")
        ['val/003', 'val/000']
    """
    if names is None:
        return [f"{split}/{label:03d}" for label in labels]
    return [names[label] for label in labels]

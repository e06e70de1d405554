"""Images of a user's own as a learner wants them: single files, and a support set of a folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.base.errors import DataError
from metapeft.datasets.decoding import GROUNDS, decoded
from metapeft.datasets.folder import class_files

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class SupportImages(NamedTuple):
    """A support set of one's own: images `(S, C, size, size)` uint8, labels `(S,)`, and the names of the classes.

    Example:
        >>> shown = SupportImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("cat", "dog"))
        >>> shown.classes[int(shown.labels[1])]
        'dog'
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def read_images(
    paths: Paths,
    like: Any = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    ground: str = "white",
) -> Tensor:
    """Image files as uint8 `(B, channels, size, size)`, as a learner or a data set has its images.

    They are squeezed to the size with antialiasing, turned as EXIF says, and put on the ground where they are
    transparent.

    Args:
        paths: one file, or several.
        like: a learner on one of `mp.backbones`, an `ImageData`, or images `(..., C, H, W)`: whose size and channels.
        size, channels: said themselves, where `like` does not say them.
        ground: `"white"` or `"black"`.

    Raises:
        ValueError: a size that nothing says, no paths. DataError: a file that is missing, or no whole image.

    Example:
        >>> read_images([], size=28, channels=1)
        Traceback (most recent call last):
        ValueError: paths is empty: at least one image file is needed
    """
    files = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    if not files:
        raise ValueError("paths is empty: at least one image file is needed")
    wanted_channels, wanted_size = _shape(like, size, channels)
    if ground not in GROUNDS:
        raise ValueError(f"ground={ground!r}: allowed are {' and '.join(map(repr, GROUNDS))}")
    for file in files:
        if not file.is_file():
            what = "a folder, and one file an image is needed" if file.is_dir() else "not there"
            raise DataError(f"{file} is {what}")
    return torch.from_numpy(np.stack([decoded(file, wanted_size, wanted_channels, ground) for file in files]))


def read_support(
    folder: str | os.PathLike[str],
    like: Any = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    ground: str = "white",
) -> SupportImages:
    """A support set from `folder/class/image.jpg`: images, labels and class names, in the order of the names.

    Args:
        folder: the folder that holds a folder a class. like, size, channels, ground: as for `read_images`.

    Raises:
        ValueError: a size that nothing says. DataError: fewer than two classes, files that are no whole images.

    Example:
        >>> read_support("examples", like=learner).classes  # doctest: +SKIP
        ('cat', 'dog')
    """
    if not Path(folder).is_dir():
        raise DataError(f"there is no folder {folder}: a support set is one folder of images a class")
    found = class_files(Path(folder))
    if len(found) < 2:
        raise DataError(
            f"{folder} holds one class, {next(iter(found))!r}: a support set has two classes at least"
        )
    files = [file for own in found.values() for file in own]
    counts = torch.tensor([len(own) for own in found.values()])
    images = read_images(files, like, size=size, channels=channels, ground=ground)
    return SupportImages(images, torch.arange(len(found)).repeat_interleave(counts), tuple(found))


def _shape(like: Any, size: int | None, channels: int | None) -> tuple[int, int]:
    """Channels and size: those that are said, else those of `like`."""
    images = like if isinstance(like, Tensor) else getattr(like, "images", None)
    shape = getattr(like, "image_shape", None) if images is None else tuple(images.shape[-3:])
    if shape is not None and shape[-1] != shape[-2]:
        raise ValueError(f"like= has images of {shape[-2]} x {shape[-1]}: square ones are read here")
    own = (None, None) if shape is None else (shape[0], shape[-1])
    found = (own[0] if channels is None else channels, own[1] if size is None else size)
    if found[0] is None or found[1] is None:
        raise ValueError(
            "size= and channels= are missing: like= does not say them (a learner does on one of mp.backbones, an "
            "ImageData always)"
        )
    if found[0] not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), not {found[0]!r}")
    whole(1, size=found[1])
    return found[0], found[1]

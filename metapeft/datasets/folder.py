"""Any directory of images, one folder a class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import whole
from metapeft.base.errors import DataError
from metapeft.datasets.decoding import GROUNDS, decoded
from metapeft.datasets.images import SPLITS, ImageData, check_split, statistics
from metapeft.datasets.store import Images, cached_images, progress, signature

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_CHUNK = 200
_log = logging.getLogger("metapeft")


def read_folder(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    size: int = 84,
    channels: int = 3,
    classes: Mapping[str, Sequence[str]] | None = None,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    seed: int = 0,
    ground: str = "white",
) -> ImageData:
    """`root/class/image.jpg` as uint8 `(images, channels, size, size)`, decoded once into the cache folder.

    Args:
        root: the folder that holds one folder a class; must be given.
        split: `"train"`, `"val"` or `"test"`.
        size: height and width in pixels; images are squeezed to it, with antialiasing.
        channels: 3 for colour, 1 for grey.
        classes: split -> names of its class folders, for a split of your own; None draws one.
        fractions: shares of the classes in train, val and test, if the split is drawn.
        seed: of that draw.
        ground: `"white"` or `"black"`: what transparent images stand on.

    Raises:
        DataError: for a folder that is missing or empty, and for files that are no images.
        ValueError: for options that do not fit.

    Example:
        >>> read_folder("data/birds", "train", size=84, seed=0).classes[:2]  # doctest: +SKIP
        ('albatross', 'auk')
    """
    check_split(split)
    if root is None:
        raise ValueError(
            "root must be given for 'folder': the folder that holds one folder of images a class"
        )
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), not {channels!r}")
    whole(8, size=size)
    if ground not in GROUNDS:
        raise ValueError(f"ground={ground!r}: allowed are {' and '.join(map(repr, GROUNDS))}")
    found = class_files(Path(root))
    parts = (
        _drawn_split(sorted(found), fractions, seed)
        if classes is None
        else _given_split(found, classes, root)
    )
    if not parts[split]:
        raise ValueError(
            f"the {split} split of {root} has no classes: {len(found)} classes, {_described(parts)}"
        )
    names = parts[split]
    images = _stored([file for name in names for file in found[name]], size, channels, ground, str(root))
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(found[name]) for name in names]))
    training = images
    if split != "train" and parts["train"]:
        training = _stored(
            [file for name in parts["train"] for file in found[name]], size, channels, ground, str(root)
        )
    mean, deviation = statistics(training)
    title = Path(root).resolve().name
    return ImageData(images, labels, names, split, name=title, mean=mean, deviation=deviation)


def _stored(files: Sequence[Path], size: int, channels: int, ground: str, title: str) -> Tensor:
    def chunks() -> Iterator[Images]:
        starts = range(0, len(files), _CHUNK)
        for start in progress(starts, title, len(starts)):
            yield np.stack([decoded(file, size, channels, ground) for file in files[start : start + _CHUNK]])

    shape = (len(files), channels, size, size)
    return torch.from_numpy(cached_images(f"folder-{size}-{ground}", signature(files), shape, chunks))


def class_files(root: Path) -> dict[str, list[Path]]:
    """The image files of each folder in `root`, both in the order of their names; DataError where there are none."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: root must hold one folder of images a class")
    folders = sorted(filter(_is_shown, filter(Path.is_dir, root.iterdir())))
    found = {folder.name: sorted(filter(_is_image, folder.iterdir())) for folder in folders}
    for folder in folders:
        below = [file for file in folder.rglob("*") if _is_image(file) and file.parent != folder]
        if below:
            _log.warning(
                "%s: %d images in folders below it are left out, such as %s; a class is the images right in its folder",
                folder, len(below), below[0].relative_to(folder),
            )  # fmt: skip
    if not found:
        raise DataError(f"{root} holds no folders: root must hold one folder of images a class")
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise DataError(f"class folder {root / empty[0]} holds no images ({', '.join(sorted(_SUFFIXES))})")
    return found


def _is_shown(path: Path) -> bool:
    """Not one of the hidden files and folders that systems and editors leave, such as `.ipynb_checkpoints`."""
    return not path.name.startswith(".")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and _is_shown(path)


def _drawn_split(names: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    if (
        len(fractions) != 3
        or not all(share >= 0 for share in fractions)
        or not abs(sum(fractions) - 1) < 1e-6
    ):
        raise ValueError(f"fractions must be three numbers of at least 0 with sum 1, not {fractions!r}")
    order = counter.draw(counter.root(seed), np.array([len(names)]), len(names))[0]
    ends = [round(len(names) * share) for share in np.cumsum(fractions)]
    pieces = np.split(order, ends[:2])
    return {split: sorted(names[place] for place in piece) for split, piece in zip(SPLITS, pieces)}


def _given_split(
    found: Mapping[str, object], classes: Mapping[str, Sequence[str]], root: object
) -> dict[str, list[str]]:
    unknown = set(classes) - set(SPLITS)
    if unknown:
        raise ValueError(f"classes has the split {sorted(unknown)[0]!r}: splits are {', '.join(SPLITS)}")
    taken: dict[str, str] = {}
    for split, names in classes.items():
        for name in names:
            if name not in found:
                raise DataError(f"class {name!r} of the {split} split has no folder in {root}")
            if name in taken:
                raise ValueError(
                    f"class {name!r} stands twice in classes ({taken[name]} and {split}): splits share none"
                )
            taken[name] = split
    return {split: sorted(classes.get(split, ())) for split in SPLITS}


def _described(parts: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{len(names)} in {split}" for split, names in parts.items())

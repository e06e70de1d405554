"""Any directory of images, one folder a class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.base.errors import DataError
from metapeft.datasets.decoding import GROUNDS, decoded
from metapeft.datasets.folder_splits import described, drawn_split, given_split, more_classes
from metapeft.datasets.forms.class_folders import (
    SUFFIXES,
    check_disjoint,
    is_image,
    split_folders,
    subfolders,
)
from metapeft.datasets.images import SPLITS, ImageData, check_split, statistics
from metapeft.datasets.sides import check_side
from metapeft.datasets.store import Images, cached_images, progress, signature

_CHUNK = 200
_log = logging.getLogger("metapeft")


def read_folder(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    size: int = 84,
    channels: int = 3,
    classes: Mapping[str, Sequence[str]] | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    ground: str = "white",
    ways: int = 5,
    broken: str = "refuse",
) -> ImageData:
    """`root/class/image.jpg` as uint8 `(images, channels, size, size)`, decoded once into the cache folder.

    Args:
        root: the folder that holds one folder a class, or `train/`, `val/` (`valid/`, `validation/`) and `test/`, which
            hold them; must be given.
        split: `"train"`, `"val"` or `"test"`.
        size: height and width in pixels; images are squeezed to it, with antialiasing.
        channels: 3 for colour, 1 for grey.
        classes: split -> names of its class folders, for a split of your own; None draws one.
        fractions: shares of the classes in train, val and test, if the split is drawn; None: 0.64, 0.16 and 0.2, but
            at least `ways` classes in each where there are three times as many.
        seed: of that draw.
        ground: `"white"` or `"black"`: what transparent images stand on.
        ways: classes that an episode needs.
        broken: `"refuse"` names the first image that cannot be read; `"skip"` leaves them out and says which.

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
    check_side(size)
    if ground not in GROUNDS:
        raise ValueError(f"ground={ground!r}: allowed are {' and '.join(map(repr, GROUNDS))}")
    whole(ways=ways)
    if broken not in ("refuse", "skip"):
        raise ValueError(f"broken={broken!r}: allowed are 'refuse' and 'skip'")
    found, parts = _classes(Path(root), classes, fractions, seed, ways)
    if not parts[split]:
        raise ValueError(
            f"the {split} split of {root} has no classes: {len(found)} classes, {described(parts)}"
        )
    if broken == "skip":
        _skip_broken(found, size, channels, ground)
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
    data = ImageData(images, labels, names, split, name=title, mean=mean, deviation=deviation)
    if classes is None and not split_folders(Path(root)):
        data.more_classes = more_classes(len(found))
    return data


def _stored(files: Sequence[Path], size: int, channels: int, ground: str, title: str) -> Tensor:
    def chunks() -> Iterator[Images]:
        starts = range(0, len(files), _CHUNK)
        for start in progress(starts, title, len(starts)):
            yield np.stack([decoded(file, size, channels, ground) for file in files[start : start + _CHUNK]])

    shape = (len(files), channels, size, size)
    return torch.from_numpy(cached_images(f"folder-{size}-{ground}", signature(files), shape, chunks))


def _classes(
    root: Path,
    classes: Mapping[str, Sequence[str]] | None,
    fractions: Sequence[float] | None,
    seed: int,
    ways: int,
) -> tuple[dict[str, list[Path]], dict[str, list[str]]]:
    """The files of each class, and the classes of each split."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: root must hold one folder of images a class")
    split = {} if classes is not None else split_folders(root)
    if split:
        if fractions is not None:
            raise ValueError(
                f"fractions has no effect on {root}, which holds {', '.join(split)}: leave it out"
            )
        check_disjoint(split)
        below = {part: class_files(folder) for part, folder in split.items()}
        found = {name: files for one in below.values() for name, files in one.items()}
        return found, {part: sorted(below.get(part, ())) for part in SPLITS}
    found = class_files(root)
    if classes is not None:
        return found, given_split(found, classes, root)
    _say_if_one_split(root)
    return found, drawn_split(sorted(found), fractions, seed, ways)


def _say_if_one_split(root: Path) -> None:
    """`root/train` beside `root/test` is one split, and its classes are about to be split again."""
    beside = split_folders(root.resolve().parent)
    if root.resolve() in {folder.resolve() for folder in beside.values()}:
        _log.warning(
            "%s is one of the splits of %s: its own classes are split again; root=%s takes the splits as they are",
            root, root.parent, root.parent,
        )  # fmt: skip


def _skip_broken(found: dict[str, list[Path]], size: int, channels: int, ground: str) -> None:
    """Leave out the images that cannot be read, and say which; which they are is kept in the cache."""
    files = [file for own in found.values() for file in own]

    def read(file: Path) -> bool:
        try:
            decoded(file, size, channels, ground)
        except DataError:
            return False
        return True

    def chunks() -> Iterator[Images]:
        whole_ones = [read(file) for file in progress(files, "looking for broken images", len(files))]
        yield np.array(whole_ones, dtype=np.uint8).reshape(-1, 1, 1, 1)

    kept = cached_images("folder-whole", signature(files), (len(files), 1, 1, 1), chunks).ravel()
    skipped = {file for file, one in zip(files, kept) if not one}
    if skipped:
        names = ", ".join(str(file) for file in sorted(skipped)[:5])
        _log.warning("%d of %d images cannot be read and are left out: %s", len(skipped), len(files), names)
    for name, own in found.items():
        left = [file for file in own if file not in skipped]
        if not left:
            raise DataError(f"class {name} has no image that can be read: {own[0]} is its first")
        found[name] = left


def class_files(root: Path) -> dict[str, list[Path]]:
    """The image files of each folder in `root`, both in the order of their names; DataError where there are none."""
    folders = subfolders(root)
    found = {folder.name: sorted(filter(is_image, folder.iterdir())) for folder in folders}
    for folder in folders:
        below = [file for file in folder.rglob("*") if is_image(file) and file.parent != folder]
        if below:
            _log.warning(
                "%s: %d images in folders below it are left out, such as %s; a class is the images right in its folder",
                folder, len(below), below[0].relative_to(folder),
            )  # fmt: skip
    if not found:
        raise DataError(f"{root} holds no folders: root must hold one folder of images a class")
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise DataError(f"class folder {root / empty[0]} holds no images ({', '.join(sorted(SUFFIXES))})")
    return found

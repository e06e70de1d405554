"""Omniglot: 1623 handwritten characters, 20 drawings of each (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from metapeft.base import counter
from metapeft.base.arguments import whole
from metapeft.datasets import omniglot_files, omniglot_published
from metapeft.datasets.images import SPLITS, ImageData, check_split, statistics
from metapeft.datasets.published import table
from metapeft.datasets.rotated import TURNS
from metapeft.datasets.store import Images, cached_images, progress

SIDE = 105
_TRAINING_CHARACTERS = 1200


def read_omniglot(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    split_by: str = "vinyals",
    size: int = 28,
    rotations: bool = True,
    validation: int = 0,
    download: bool = False,
) -> ImageData:
    """Omniglot as uint8 `(images, 1, size, size)`, ink 255 on 0, so that zero padding is blank paper.

    Scaled down once, with antialiasing, and kept in the cache folder. Classes are named
    `Alphabet/character07/rot090` and stand character by character, turns within, drawings within.

    Args:
        root: the folder that holds `images_background/` and `images_evaluation/` (torchvision's
            `omniglot-py`), or the two original zip files, or torchmeta's `data.hdf5`; None:
            `$METAPEFT_DATA/omniglot-py`.
        split: `"train"`, `"val"` or `"test"`.
        split_by: `"vinyals"`: 1028, 172 and 423 characters, by alphabet, as in Vinyals et al. 2016 (arXiv
            1606.04080); `"characters"`: 1200 and 423 characters whatever their alphabet, drawn once by a
            fixed hash, as in Santoro et al. 2016 (arXiv 1605.06065), who published no list.
        size: height and width in pixels, 8 to 105.
        rotations: quarter turns are classes of their own, four times as many.
        validation: with `split_by="characters"`: so many of the 1200 become the validation split.
        download: fetch the two zip files into `root` from the original address where they are missing.

    Raises:
        DataError: for data that is missing, incomplete or damaged, or whose file names or pixels are not the
            published ones.
        ValueError: for options that do not fit.

    Example:
        >>> read_omniglot("data/omniglot-py", "test")  # doctest: +SKIP
        ImageData(omniglot, test: 33840 images 1x28x28, 1692 classes)
    """
    check_split(split)
    whole(8, SIDE, size=size)
    parts = _parts(split_by, validation)
    if not parts[split]:
        raise ValueError(
            "split='val' is empty: split_by='characters' has no validation characters unless validation= "
            "sets some of its 1200 apart; split_by='vinyals' has 172"
        )
    source = omniglot_files.open_source(root, download)
    paths = tuple(characters())
    omniglot_files.check(source, paths, omniglot_files.DRAWINGS)
    published = omniglot_published.hashes(paths)
    identity: list[Any] = [source.identity]
    if published is not None:
        omniglot_published.check_names(source, paths, published)
        identity += [published[part] for part in omniglot_files.SETS]  # what is in the cache was compared

    def chunks() -> Iterator[Images]:
        read = omniglot_published.checked(source, paths, published)
        for _, drawings in progress(read, "Omniglot", len(paths)):
            yield _scaled(drawings, size)

    shape = (len(paths) * omniglot_files.DRAWINGS, 1, size, size)
    stored = torch.from_numpy(cached_images(f"omniglot-{size}", identity, shape, chunks))
    drawings = stored.view(-1, omniglot_files.DRAWINGS, 1, size, size)
    mean, deviation = statistics(drawings[parts["train"]].flatten(0, 1))
    names = ["/".join(path.split("/")[1:]) for path in characters()]
    images, classes = drawings[parts[split]], [names[place] for place in parts[split]]
    if rotations:
        images = torch.stack([images.rot90(turn, (-2, -1)) for turn in range(len(TURNS))], dim=1)
        classes = [f"{name}/{turn}" for name in classes for turn in TURNS]
    labels = torch.arange(len(classes)).repeat_interleave(omniglot_files.DRAWINGS)
    images = images.reshape(-1, 1, size, size)
    return ImageData(images, labels, classes, split, name="omniglot", mean=mean, deviation=deviation)


@functools.cache
def characters() -> dict[str, str]:
    """Every character, sorted: `images_background/Alphabet/character01` -> its part of the Vinyals split."""
    listed, found = table("omniglot"), {}
    for image_set in omniglot_files.SETS:
        for alphabet, (_, parts) in listed[image_set].items():
            for part, (first, last) in parts.items():
                for number in range(first, last + 1):
                    found[f"{image_set}/{alphabet}/character{number:02d}"] = part
    return dict(sorted(found.items()))


def _parts(split_by: str, validation: int) -> dict[str, list[int]]:
    """The places of each split's characters in `characters()`."""
    if split_by == "vinyals":
        if validation:
            raise ValueError(
                "validation= has no effect with split_by='vinyals', which has its own 172 characters"
            )
        return {
            split: [i for i, part in enumerate(characters().values()) if part == split] for split in SPLITS
        }
    if split_by != "characters":
        raise ValueError(f"split_by must be 'vinyals' or 'characters', not {split_by!r}")
    whole(0, _TRAINING_CHARACTERS - 1, validation=validation)
    total = len(characters())
    order = counter.draw(counter.root(0), np.array([total]), total)[0].tolist()
    kept = _TRAINING_CHARACTERS - validation
    return {
        "train": sorted(order[:kept]),
        "val": sorted(order[kept:_TRAINING_CHARACTERS]),
        "test": sorted(order[_TRAINING_CHARACTERS:]),
    }


def _scaled(drawings: Images, size: int) -> Images:
    """`(20, 105, 105)` -> `(20, 1, size, size)`, bilinear with antialiasing."""
    images = torch.from_numpy(drawings)[:, None]
    if size != SIDE:
        small = F.interpolate(
            images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
        images = small.round().clamp(0, 255).to(torch.uint8)
    return images.numpy()

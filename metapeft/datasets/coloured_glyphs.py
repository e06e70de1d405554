"""Glyphs in colours: the same images, labelled by their shape or by their colour."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.datasets.glyphs import DEVIATION, MEAN, read_glyphs
from metapeft.datasets.images import SPLITS, ImageData
from metapeft.datasets.rootless import refuse_root

HUES = 12  # a split
# past the code points, which the glyphs' own keys come from, and the companions of pairs
_POSITION = np.array([0x110001], dtype=np.uint64)
_CHUNK = 2048


def read_coloured_glyphs(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    by: str = "shape",
    size: int = 28,
    per_class: int = 20,
    seed: int = 0,
) -> ImageData:
    """Images `(3, size, size)`: each glyph in one of 12 pure hues on black, `round(ink * rgb(hue))`.

    The hues of a split are 30 degrees apart and classes of their own: 0, 30, ... in training, 10, 40, ... in
    validation, 20, 50, ... in test. They are dealt out evenly to all images in random order, so that neither shape nor
    colour says anything of the other. With `by="shape"` and `by="colour"` of the same seed the images are the same:
    `MixedSampler({"shape": ..., "colour": ...})` is the family in which only the support set says which of the two
    counts (from two shots on).

    Args:
        root: must be None. split, size, per_class, seed: as for glyphs; `per_class` images of a shape.
        by: `"shape"`: the classes of the glyphs; `"colour"`: the 12 hues.

    Raises:
        ValueError: for options that do not fit.

    Example:
        >>> read_coloured_glyphs(split="val", by="colour", per_class=3)
        ImageData(coloured-glyphs, val: 300 images 3x28x28, 12 classes)
    """
    refuse_root("coloured-glyphs", root)
    if by not in ("shape", "colour"):
        raise ValueError(f"by={by!r}: allowed are 'shape' and 'colour'")
    data = read_glyphs(None, split, size=size, per_class=per_class, seed=seed)
    hue = dealt(len(data), seed)
    colours = rgb(hues(split))
    chunks = zip(torch.split(data.images, _CHUNK), torch.split(hue, _CHUNK))
    images = torch.cat([(ink * colours[which, :, None, None]).round().byte() for ink, which in chunks])
    labels, classes = data.labels, data.classes
    if by == "colour":
        labels, classes = hue, tuple(f"hue {degrees:03d}" for degrees in hues(split))
    mean, deviation = _statistics()
    return ImageData(
        images, labels, classes, split, name="coloured-glyphs", mean=[mean] * 3, deviation=[deviation] * 3
    )


def hues(split: str) -> list[int]:
    """The hues of a split in degrees.

    Example:
        >>> hues("val")[:3], len(set(hues("train") + hues("val") + hues("test")))
        ([10, 40, 70], 36)
    """
    step = 360 // (HUES * len(SPLITS))
    return [step * (len(SPLITS) * number + SPLITS.index(split)) for number in range(HUES)]


def rgb(degrees: list[int]) -> Tensor:
    """Pure colours `(n, 3)` in 0 .. 1, of full saturation and value: red at 0, green at 120, blue at 240 degrees.

    Example:
        >>> rgb([0, 30, 120]).tolist()
        [[1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.0]]
    """
    away = torch.tensor(degrees)[:, None] - torch.tensor([0, 120, 240])
    distance = ((away + 180) % 360 - 180).abs()  # from the channel's own hue, at most 180
    return (2 - distance / 60).clamp(0, 1)


def dealt(images: int, seed: int) -> Tensor:
    """For each image the place of its hue: `(images,)` int64, each hue as often as any other, up to one."""
    key = counter.child(counter.root(seed), _POSITION)
    order = counter.words(key, images)[0].argsort(kind="stable")
    found = np.empty(images, dtype=np.int64)
    found[order] = np.arange(images) % HUES
    return torch.from_numpy(found)


def _statistics() -> tuple[float, float]:
    """Of each channel, from those of the glyphs: ink and colour are independent, and the hues go all around."""
    colours = rgb(hues("train"))[:, 0]
    square = (MEAN[0] ** 2 + DEVIATION[0] ** 2) * float(colours.square().mean())
    mean = MEAN[0] * float(colours.mean())
    return mean, (square - mean**2) ** 0.5

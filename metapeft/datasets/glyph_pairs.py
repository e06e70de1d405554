"""Two glyphs side by side, of which an episode decides the one that carries the label: only its support set says so."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.datasets.glyphs import read_glyphs
from metapeft.datasets.images import ImageData

# past the code points, which the glyphs' own keys come from
_POSITION = np.array([0x110000], dtype=np.uint64)


def read_glyph_pairs(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    size: int = 28,
    per_class: int = 20,
    seed: int = 0,
) -> ImageData:
    """Images `(1, size, size)` whose left half is a glyph of the class, the right half one of another class.

    Classes, options and errors are those of `read_glyphs`; each glyph is squeezed to half its width. The companion of
    an image is drawn once, from all images of other classes of the split. With `shift=Shift(["plain", "swap"])` an
    `EpisodeSampler` swaps the halves of every image in half of its episodes: only the support set says on which side
    to look.

    Args:
        root: must be None. split, size, per_class, seed: as for glyphs, with an even size.

    Raises:
        ValueError: for options that do not fit.

    Example:
        >>> read_glyph_pairs(split="val", per_class=2)
        ImageData(glyph-pairs, val: 200 images 1x28x28, 100 classes)
    """
    if root is not None:
        raise ValueError(
            f"root has no effect on 'glyph-pairs', which is embedded: leave out {os.fspath(root)!r}"
        )
    data = read_glyphs(None, split, size=size, per_class=per_class, seed=seed)
    if size % 2:
        raise ValueError(f"size must be even, for two glyphs side by side, not {size}")
    half = torch.unflatten(data.images.float(), -1, (-1, 2)).mean(-1).round().to(torch.uint8)
    other = companions(data.labels, seed)
    images = torch.cat([half, half[other]], dim=-1)
    mean, deviation = data.preprocess.mean.flatten().tolist(), data.preprocess.deviation.flatten().tolist()
    return ImageData(
        images, data.labels, data.classes, split, name="glyph-pairs", mean=mean, deviation=deviation
    )


def companions(labels: Tensor, seed: int) -> Tensor:
    """For each image a random one of another class: places `(images,)`.

    Example:
        >>> companions(torch.tensor([0, 0, 1, 1]), seed=0) // 2
        tensor([1, 1, 0, 0])
    """
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    key = counter.child(counter.root(seed), _POSITION)
    uniform = torch.from_numpy(counter.uniforms(key, len(labels))).flatten()
    # from the end of the own class around the ring of all images, so far that it does not come back to that class
    step = (uniform * (len(labels) - counts[labels])).long()
    return order[(counts.cumsum(0)[labels] + step) % len(labels)]

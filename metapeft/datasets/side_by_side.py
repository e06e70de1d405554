"""Two images side by side, of which an episode decides the one that carries the label."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.datasets.images import ImageData

# past the code points, which the glyphs' own keys come from
_POSITION = np.array([0x110000], dtype=np.uint64)
_CHUNK = 4096


def check_even(size: int) -> None:
    """Raises ValueError for a size of which there is no half."""
    if size % 2:
        raise ValueError(f"size must be even, for two images side by side, not {size}")


def side_by_side(data: ImageData, name: str, seed: int) -> ImageData:
    """Each image squeezed to half its width, beside it one of another class; classes and labels are the left one's.

    Args:
        data: images of an even width, at least two classes.
        name: of the result.
        seed: of the companions.

    Example:
        >>> images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(-1, -1, 2, 2)
        >>> pairs = side_by_side(ImageData(images, [0, 0, 1, 1], ["a", "b"]), "pairs", seed=0)
        >>> pairs.images[:, 0, 0].tolist()
        [[0, 2], [1, 2], [2, 0], [3, 0]]
    """
    half = torch.cat([_squeezed(chunk) for chunk in torch.split(data.images, _CHUNK)])
    images = torch.cat([half, half[companions(data.labels, seed)]], dim=-1)
    mean, deviation = data.preprocess.mean.flatten().tolist(), data.preprocess.deviation.flatten().tolist()
    return ImageData(images, data.labels, data.classes, data.split, name=name, mean=mean, deviation=deviation)


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


def _squeezed(images: Tensor) -> Tensor:
    return torch.unflatten(images.float(), -1, (-1, 2)).mean(-1).round().to(torch.uint8)

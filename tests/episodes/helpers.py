"""Small data sets whose images say which image they are."""

from __future__ import annotations

import torch
from torch import Tensor

import metapeft as mp


def numbered(classes: int = 20, each: int = 20, side: int = 4, split: str = "train") -> mp.ImageData:
    """Image i holds its number in its first two bytes (base 256), labels interleaved."""
    count = classes * each
    images = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count) // 256
    images[:, 0, 0, 1] = torch.arange(count) % 256
    return mp.ImageData(images, torch.arange(count) % classes, [f"class {i}" for i in range(classes)], split)


def numbers(images: Tensor) -> Tensor:
    """The inverse: which image each is."""
    return 256 * images[..., 0, 0, 0].long() + images[..., 0, 0, 1].long()


def same(first: mp.EpisodeBatch, second: mp.EpisodeBatch) -> bool:
    """Equal in every field, bit for bit."""
    pairs = zip(first.fields().values(), second.fields().values())
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)

"""Small data sets whose images say which image they are."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

import metapeft as mp


def numbered(classes: int = 20, each: int = 20, side: int = 4, split: str = "train") -> mp.ImageData:
    """Image i holds its number in its first two bytes (base 256), labels interleaved."""
    count = classes * each
    images = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count) // 256
    images[:, 0, 0, 1] = torch.arange(count) % 256
    images[:, 0, 1, :] = 99  # no image is all zeros: that is padding
    return mp.ImageData(images, torch.arange(count) % classes, [f"class {i}" for i in range(classes)], split)


def numbers(images: Tensor) -> Tensor:
    """The inverse: which image each is."""
    return 256 * images[..., 0, 0, 0].long() + images[..., 0, 0, 1].long()


def same(first: mp.EpisodeBatch, second: mp.EpisodeBatch) -> bool:
    """Equal in every field, bit for bit."""
    pairs = zip(first.fields().values(), second.fields().values())
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def digest(tensor: Tensor) -> str:
    """16 hexadecimal digits that two tensors of whole numbers share when they are equal."""
    return hashlib.sha256(tensor.to(torch.int64).numpy().astype("<i8").tobytes()).hexdigest()[:16]


DATA = numbered()
OPTIONS: list[dict[str, Any]] = [
    {},
    {"ways": 20, "shots": 5, "queries": 15},
    {"ways": (2, 7), "shots": (1, 4)},
    {"ways": 3, "shots": (1, 4), "imbalanced": True},
    {"ways": (2, 5), "rotations": True},
    {"shift": True, "shots": 2},
    {"augment": mp.Augment(crop=1, brightness=0.2), "ways": (2, 4)},
]


def make(options: dict[str, Any], seed: int = 0) -> mp.EpisodeSampler:
    return mp.EpisodeSampler(DATA, **{"ways": 5, "shots": 1, "queries": 3, "seed": seed, **options})

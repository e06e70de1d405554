"""Families of few-class tasks with a backbone for each: images with changing styles, and intents of sentences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import metapeft as mp
from metapeft.datasets.images import ImageData
from metapeft.datasets.intents import HELD_OUT
from metapeft.episodes.shift import Shift, training_styles
from theory.bridge.text import read_features

SPLITS = ("train", "val", "test")
IMAGES = ("omniglot", "glyphs", "miniimagenet")
NAMES = (*IMAGES, *HELD_OUT)
CLASSES = 64  # that are retrained on, of an image family: few, as in the paper's study
SIZE, WIDTH = 20, 16  # of images, and filters of Conv-4: small, so that five runs take minutes on one core


@dataclass(frozen=True)
class Family:
    """What tasks are drawn from.

    Attributes:
        name: for tables.
        data: split -> data set; no class is in two of them.
        shifts: split -> what changes the style of an episode's images, or None.
        backbone: seed -> a network with fresh weights.
        about: one line for tables.
    """

    name: str
    data: dict[str, Any]
    shifts: dict[str, Any]
    backbone: Callable[[int], nn.Module]
    about: str


def family(name: str, seed: int) -> Family:
    """The task family of one run.

    Args:
        name: one of NAMES. seed: draws the training classes of an image family.

    Raises:
        ValueError: an unknown name, data that is missing (`DataError`).
        ImportError: the sentence encoder is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"--data: {name!r} is unknown; known are {', '.join(NAMES)}")
    if name in HELD_OUT:
        return _intents(name)
    options: dict[str, Any] = {"size": SIZE} | ({"rotations": False} if name == "omniglot" else {})
    data = {split: mp.load_dataset(name, split=split, **options) for split in SPLITS}
    data["train"] = few_classes(data["train"], CLASSES, seed)
    channels = data["train"].images.shape[1]
    # colour photographs differ enough without a change of style
    shifts: dict[str, Any] = dict.fromkeys(SPLITS)
    if channels == 1:
        shifts = {"train": training_styles(), **{s: Shift.of_split(s) for s in ("val", "test")}}

    def backbone(seed: int) -> nn.Module:
        module: nn.Module = mp.backbones.conv4(ways=2, channels=channels, width=WIDTH, size=SIZE, seed=seed)
        return module

    styles = ", unseen styles at test" if channels == 1 else ""
    count = len(data["train"].classes)
    return Family(
        name, data, shifts, backbone, f"Conv-4-{WIDTH}, {SIZE}x{SIZE}, {count} training classes{styles}"
    )


def few_classes(data: ImageData, count: int, seed: int) -> ImageData:
    """The images of `count` classes, drawn by `seed`; all classes where there are no more.

    Example:
        >>> data = ImageData(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), [0, 0, 1, 1, 2, 2], ["a", "b", "c"])
        >>> few_classes(data, 2, seed=0)
        ImageData(data, train: 4 images 1x8x8, 2 classes)
    """
    if count >= len(data.classes):
        return data
    order = torch.randperm(len(data.classes), generator=torch.Generator().manual_seed(seed))
    kept = order[:count].sort().values
    mine = torch.isin(data.labels, kept)
    labels = torch.searchsorted(kept, data.labels[mine])
    names = [data.classes[index] for index in kept.tolist()]
    return ImageData(data.images[mine], labels, names, data.split, name=data.name)


def fixed_tasks(data: Any, ways: int, seed: int) -> Any:
    """The same items with labels 0 to ways - 1: classes in an order drawn by `seed`, each `ways` of them a task.

    All tasks share their labels, as in the paper's study of images, where one output layer tells 0 from 1, 2 from 3.

    Example:
        >>> data = ImageData(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), [0, 0, 1, 1, 2, 2], ["a", "b", "c"])
        >>> fixed_tasks(data, 2, seed=0).labels
        tensor([1, 1, 0, 0, 0, 0])
    """
    found = copy.copy(data)
    order = torch.randperm(len(data.classes), generator=torch.Generator().manual_seed(seed))
    found.labels = (order.argsort() % ways)[data.labels]
    found.classes = tuple(f"label {label}" for label in range(ways))
    return found


def _intents(name: str) -> Family:
    data = {split: read_features(name, split) for split in SPLITS}
    features = data["train"].vectors.shape[1]

    def backbone(seed: int) -> nn.Module:
        module: nn.Module = mp.backbones.mlp(features, 2, hidden=(128, 128), seed=seed)
        return module

    about = f"frozen MiniLM features, perceptron 128-128, {len(data['train'].classes)} training intents"
    return Family(name, data, dict.fromkeys(SPLITS), backbone, about)

"""Image data sets: one uint8 tensor, its labels, its classes."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.datasets.sides import check_side

SPLITS = ("train", "val", "test")


class Preprocess(nn.Module):
    """uint8 -> float: `(x / 255 - mean) / deviation` a channel; input that is not uint8 passes unchanged.

    The result has the dtype of the module's buffers (`model.to(torch.float64)` moves them).

    Args:
        mean: one number a channel, in units of `x / 255`.
        deviation: likewise, above 0.

    Example:
        >>> Preprocess([0.5], [0.5])(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist()
        [-1.0, 1.0]
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(deviation) or not all(value > 0 for value in deviation):
            raise ValueError(
                f"deviation must hold one positive number a channel, as many as mean ({len(mean)}), "
                f"not {deviation}"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer(
            "deviation", torch.tensor(deviation, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(..., C, H, W)` uint8 -> the same shape in floats."""
        if x.dtype != torch.uint8:
            return x
        return (x.to(self.mean.dtype) / 255 - self.mean) / self.deviation


def split_hash(split: str, classes: Sequence[str]) -> str:
    """16 hexadecimal digits of the SHA-256 of a split's name and its class list, in order.

    Example:
        >>> split_hash("train", ["a", "b"])
        'c9064b178fc261b8'
    """
    return hashlib.sha256(json.dumps([split, list(classes)]).encode()).hexdigest()[:16]


def check_split(split: str, known: Sequence[str] = SPLITS) -> None:
    """Raises ValueError unless `split` is one of `known`."""
    if split not in known:
        raise ValueError(f"split must be one of {', '.join(map(repr, known))}, not {split!r}")


class ImageData:
    """A data set of images, held once as one uint8 tensor and gathered by index.

    Args:
        images: uint8 `(images, channels, height, width)`; may be memory-mapped.
        labels: integers `(images,)`, places in `classes`.
        classes: names of the classes, each once; unique over the splits of one data set.
        split: `"train"`, `"val"`, `"test"` or a name of your own.
        name: what tables call the data set.
        mean: a number a channel for `.preprocess`, in units of `x / 255`; measured on `images` if left out.
            Give validation and test data the numbers of the training data.
        deviation: likewise.

    Raises:
        ValueError: for images that are not uint8 with four axes, labels that do not fit, or a class named
            twice.

    Example:
        >>> data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), [0, 0, 1, 1], ["cat", "dog"])
        >>> len(data), data.split, data.gather(torch.tensor([[0, 3]])).shape
        (4, 'train', torch.Size([1, 2, 1, 8, 8]))
    """

    more_classes = ""
    """What to do where a split has fewer classes than an episode needs: the end of a sentence."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | Sequence[int],
        classes: Sequence[str],
        split: str = "train",
        *,
        name: str = "data",
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
    ) -> None:
        _check_images(images)
        if isinstance(classes, str) or not isinstance(classes, Sequence):
            raise ValueError(f"classes={classes!r}: a list of names is needed")
        self.images = images
        self.labels = _checked_labels(labels, len(images), len(classes))
        self.classes = tuple(classes)
        _check_classes(self.classes)
        for name_of, numbers in (("mean", mean), ("deviation", deviation)):
            if numbers is not None and not isinstance(numbers, Sequence):
                raise ValueError(f"{name_of}={numbers!r}: a list is needed, a number a channel")
        if (mean is None) != (deviation is None):
            raise ValueError("mean and deviation belong together: give both or none")
        self.split = split
        self.name = name
        self._statistics = None if mean is None or deviation is None else (list(mean), list(deviation))
        if self._statistics and {len(numbers) for numbers in self._statistics} != {images.shape[1]}:
            raise ValueError(
                f"mean={mean} and deviation={deviation}: a number a channel is needed, and images have "
                f"{images.shape[1]} of them"
            )

    @classmethod
    def from_dataset(
        cls, dataset: Any, size: int = 84, *, channels: int = 3, split: str = "train", name: str | None = None
    ) -> ImageData:
        """The images of somebody else's data set: a torch one, torchvision's `ImageFolder`, a Hugging Face table.

        Args:
            dataset: with `len` and `[i]`, which gives `(image, label)` or a row with `image` and `label`. Images are
                PIL images, pixels in uint8 or in floats from 0 to 1, or encoded.
            size: height and width in pixels, to which images are squeezed.
            channels: 3 for colour, 1 for grey.
            split: what the classes are for: `"train"`, `"val"` or `"test"`.
            name: what tables call it; None: the name of its type.

        Raises:
            ValueError: what is no such data set; names the item.

        Example:
            >>> pairs = [(torch.zeros(3, 9, 9), "cat"), (torch.ones(3, 9, 9), "dog")]
            >>> ImageData.from_dataset(pairs, size=8).classes
            ('cat', 'dog')
        """
        from metapeft.datasets.pairs import read_pairs

        check_side(size)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), not {channels!r}")
        images, labels, classes = read_pairs(dataset, size, channels)
        return cls(images, labels, classes, split, name=name or type(dataset).__name__.lower())

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: Tensor) -> Tensor:
        """Images by place: int64 of any shape `(...)` -> uint8 `(..., C, H, W)`, on the images' device."""
        flat = self.images.index_select(0, index.flatten().to(self.images.device))
        return flat.view(*index.shape, *self.images.shape[1:])

    def to(self, device: torch.device | str) -> ImageData:
        """The same data with its images on another device; episodes then come out there."""
        moved = object.__new__(type(self))
        moved.__dict__.update(self.__dict__, images=self.images.to(device))
        moved.__dict__.pop("preprocess", None)
        return moved

    @functools.cached_property
    def preprocess(self) -> Preprocess:
        """uint8 -> float with the data set's own mean and deviation a channel."""
        return Preprocess(*(self._statistics or statistics(self.images)))

    @property
    def split_hash(self) -> str:
        """What `split_hash(split, classes)` gives: equal hashes, equal class lists in equal order."""
        return split_hash(self.split, self.classes)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return (
            f"ImageData({self.name}, {self.split}: {len(self)} images {shape}, {len(self.classes)} classes)"
        )


def statistics(images: Tensor, most: int = 20_000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation a channel of `x / 255`, over at most `most` images, evenly spaced.

    Exact integer sums; a deviation of 0 (a constant channel) becomes 1.
    """
    step = -(-len(images) // most)
    channels = [
        torch.bincount(images[::step, c].flatten(), minlength=256).double() for c in range(images.shape[1])
    ]
    values = torch.arange(256, dtype=torch.float64) / 255
    means = [float((count * values).sum() / count.sum()) for count in channels]
    squares = [
        float((count * (values - mean) ** 2).sum() / count.sum()) for count, mean in zip(channels, means)
    ]
    return means, [square**0.5 or 1.0 for square in squares]


def _check_images(images: Any) -> None:
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor, not {type(images).__name__}; try torch.from_numpy")
    if images.is_floating_point() and bool(images.isnan().any()):
        raise ValueError(
            "images contain NaN: they must be uint8 from 0 to 255; was a division by zero in their way?"
        )
    if images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 from 0 to 255, not {images.dtype}: floats in 0..1 need x.mul(255).round()"
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images must be (images, channels, height, width), none of them 0, not {tuple(images.shape)}: "
            "grey images need images[:, None]"
        )


def _checked_labels(labels: Tensor | Sequence[int], images: int, classes: int) -> Tensor:
    given = torch.as_tensor(labels)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"labels must be integers, not {given.dtype}")
    if given.shape != (images,):
        raise ValueError(f"labels must be ({images},), one for each image, not {tuple(given.shape)}")
    if int(given.min()) < 0 or int(given.max()) >= classes:
        raise ValueError(
            f"labels must be places in classes, 0 to {classes - 1}, but run from {int(given.min())} "
            f"to {int(given.max())}"
        )
    return given.to(torch.int64).cpu()


def _check_classes(classes: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for name in classes:
        if not isinstance(name, str):
            raise ValueError(f"classes must be names (str), not {name!r}")
        if name in seen:
            raise ValueError(f"classes holds {name!r} twice: each class has one name of its own")
        seen.add(name)

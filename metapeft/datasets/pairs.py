"""Pairs of image and label of somebody else's data set, as one uint8 tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metapeft.datasets.decoding import decoded
from metapeft.datasets.store import Images, progress

_IMAGES = ("image", "img", "images", "pixel_values", "x")
_LABELS = ("label", "labels", "fine_label", "target", "class", "y")


def read_pairs(dataset: Any, size: int, channels: int) -> tuple[Tensor, list[int], list[str]]:
    """The images `(n, channels, size, size)`, their labels, and the names of the classes that occur.

    Args:
        dataset: with `len` and `[i]`, giving `(image, label)` or a row with columns such as `image` and `label`.
        size: height and width in pixels.
        channels: 1 or 3.

    Raises:
        ValueError: what is no such data set, and images and labels of other kinds; names the item.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"dataset={type(dataset).__name__} has no length or no items by number: a map-style data set is needed; "
            "of a stream, list(stream) makes one"
        )
    if not len(dataset):
        raise ValueError(f"dataset={type(dataset).__name__} is empty")
    images = torch.empty(len(dataset), channels, size, size, dtype=torch.uint8)
    given: list[Any] = []
    column = ""
    for i in progress(range(len(dataset)), "reading the data set", len(dataset)):
        image, label, column = _pair(dataset[i], i)
        images[i] = torch.from_numpy(
            np.array(_pixels(image, size, channels, i))
        )  # a copy, which torch may write to
        given.append(_label(label, i))
    return images, *_named(given, _names(dataset, column))


def _pair(item: Any, place: int) -> tuple[Any, Any, str]:
    if isinstance(item, Mapping):
        image = next((name for name in _IMAGES if name in item), None)
        label = next((name for name in _LABELS if name in item), None)
        if image is None or label is None:
            raise ValueError(
                f"item {place} of the data set has the columns {', '.join(map(str, item))}: one of "
                f"{', '.join(_IMAGES)} and one of {', '.join(_LABELS)} are needed; rename_column renames one"
            )
        return item[image], item[label], label
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1], ""
    raise ValueError(
        f"item {place} of the data set is a {type(item).__name__}: (image, label), or a row, is needed"
    )


def _label(label: Any, place: int) -> int | str:
    if isinstance(label, Tensor | np.ndarray | np.generic):
        label = label.tolist()
    if isinstance(label, str) or (isinstance(label, int) and not isinstance(label, bool)):
        return label
    raise ValueError(f"the label of item {place} is {label!r}: a whole number or a name of a class is needed")


def _names(dataset: Any, column: str) -> list[str] | None:
    """Names by number: torchvision's `.classes`, or a Hugging Face table's `features[column].names`."""
    features = getattr(dataset, "features", None)
    of_column = features.get(column) if isinstance(features, Mapping) else None
    names = getattr(of_column, "names", None) or getattr(dataset, "classes", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def _named(given: list[Any], names: list[str] | None) -> tuple[list[int], list[str]]:
    held = sorted(set(given), key=lambda label: (isinstance(label, str), label))
    places = {label: place for place, label in enumerate(held)}
    fits = names is not None and all(isinstance(label, int) and 0 <= label < len(names) for label in held)
    classes = [names[label] for label in held] if names is not None and fits else [str(one) for one in held]
    return [places[label] for label in given], classes


def _pixels(image: Any, size: int, channels: int, place: int) -> Images:
    if isinstance(image, Mapping) and image.get("bytes"):  # a row of a table whose images are not decoded
        return decoded(Path(f"item {place}"), size, channels, content=image["bytes"])
    if isinstance(image, bytes):
        return decoded(Path(f"item {place}"), size, channels, content=image)
    if isinstance(image, str | Path):
        return decoded(Path(image), size, channels)
    picture = image if isinstance(image, Image.Image) else _picture(image, place)
    picture = picture.convert("RGB" if channels == 3 else "L")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _picture(image: Any, place: int) -> Image.Image:
    """Pixels `(C, H, W)`, `(H, W, C)` or `(H, W)`, uint8 or floats from 0 to 1."""
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if not isinstance(pixels, np.ndarray) or pixels.ndim not in (2, 3):
        raise ValueError(
            f"the image of item {place} is a {type(image).__name__}: a PIL image, or pixels (C, H, W), is needed"
        )
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"the image of item {place} has values from {pixels.min():.3g} to {pixels.max():.3g}: floats must lie "
                "in 0 to 1; leave Normalize out of the transform, .preprocess does it later"
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(
            f"the image of item {place} is {pixels.dtype} {pixels.shape}: uint8 of 1 or 3 channels is needed"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))

"""Pickles of image data: learn2learn's and Ren's caches, MetaOptNet's, and tieredImageNet's of encoded images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metapeft.base.errors import DataError
from metapeft.datasets.forms.source import (
    ALIASES,
    Content,
    Picture,
    Source,
    first_file,
    numbered,
    pixel_block,
)
from metapeft.datasets.forms.unpickler import array, items, load, text, texts, whole_numbers

_PIXELS = ("image_data", "data", "images")


def find(root: Path, split: str, patterns: Sequence[str]) -> Source | None:
    """The pickle of a split, by its file's name; `{}` in a pattern stands for what the split is called."""
    names = [pattern.format(alias) for pattern in patterns for alias in ALIASES[split]]
    file = first_file(root, names)
    if file is None:
        return None
    labels = _labels_beside(file, split)
    if labels is None:
        return Source("pickle", (file,), lambda: _whole(file, split), slow=True)
    return Source("images and labels apart", (file, labels), lambda: _apart(file, labels, split), slow=True)


def _labels_beside(file: Path, split: str) -> Path | None:
    """tieredImageNet's second file: `train_images_png.pkl` or `train_images.npz` has `train_labels.pkl`."""
    if "_images" not in file.name:
        return None
    found = first_file(file.parent, [f"{alias}_labels.pkl" for alias in ALIASES[split]])
    if found is None:
        raise DataError(f"{file} says nothing of classes: {split}_labels.pkl is missing beside it")
    return found


def _whole(file: Path, split: str) -> Content:
    """One dict of pixels and of either `class_dict` (name -> places) or labels."""
    found = items(load(file), file)
    name = next((name for name in _PIXELS if name in found), None)
    if name is None:
        raise DataError(
            f"{file} has no {' or '.join(_PIXELS)}, but {', '.join(sorted(found)[:5]) or 'nothing'}"
        )
    pixels = pixel_block(array(found[name]), f"{file}: {name}")
    if "class_dict" in found:
        labels = _of_places(found["class_dict"], len(pixels), file)
    else:
        labels = _named(found, len(pixels), file, split)
    return Content(labels, lambda: iter(pixels))


def _of_places(given: Any, images: int, file: Path) -> list[str]:
    labels = [""] * images
    for name, places in items(given, file).items():
        for place in whole_numbers(places, file, f"class_dict[{name!r}]"):
            if place >= images:
                raise DataError(
                    f"{file}: class {name} lists image {place}, but there are {images}: was it cut short?"
                )
            if labels[place]:
                raise DataError(f"{file}: image {place} is in two classes, {labels[place]} and {name}")
            labels[place] = name
    if "" in labels:
        raise DataError(f"{file}: image {labels.index('')} is in no class of class_dict")
    return labels


def _named(found: Mapping[str, Any], images: int, file: Path, split: str) -> list[str]:
    """Labels by name: from `catname2label`, or names beside the numbers, or the split's name and the number."""
    key = next((key for key in ("labels", "fine_labels", "label_specific") if key in found), None)
    if key is None:
        raise DataError(f"{file} has no class_dict and no labels: nothing says which class an image has")
    by_name = texts(found[key])
    labels = by_name or numbered(*_numbers(found, key, file, split))
    if len(labels) != images:
        raise DataError(f"{file} has {images} images and {len(labels)} labels: was it cut short?")
    return labels


def _numbers(
    found: Mapping[str, Any], key: str, file: Path, split: str
) -> tuple[Sequence[int], str, Sequence[str] | None]:
    numbers = whole_numbers(found[key], file, key)
    names = texts(found[f"{key}_str"]) if f"{key}_str" in found else None
    if names is None and "catname2label" in found:
        used = set(numbers)
        listed = items(found["catname2label"], file).items()
        called = {number: name for name, number in listed if type(number) is int and number in used}
        if len(called) == len(used):
            places = {number: place for place, number in enumerate(sorted(called))}
            return (
                [places[number] for number in numbers],
                split,
                [called[number] for number in sorted(called)],
            )
    if names is not None and max(numbers, default=0) >= len(names):
        raise DataError(f"{file} has label {max(numbers)}, but names for {len(names)} classes")
    return numbers, split, names


def _apart(file: Path, labels_file: Path, split: str) -> Content:
    """Encoded images (or pixels in an .npz) in one file, labels with names in another."""
    labels = items(load(labels_file), labels_file)
    count, pictures = _archive(file) if file.suffix == ".npz" else _encoded(file)
    names = texts(labels["label_specific_str"]) if "label_specific_str" in labels else None
    return Content(_named(labels, count, labels_file, split), pictures, order=names or ())


def _encoded(file: Path) -> tuple[int, Callable[[], Iterator[Picture]]]:
    stored = array(load(file))
    if isinstance(stored, np.ndarray):
        block = pixel_block(stored, str(file))
        return len(block), lambda: iter(block)
    if not isinstance(stored, list) or not stored:
        raise DataError(f"{file} must hold a list of encoded images, not a {type(stored).__name__}")

    def pictures() -> Iterator[Picture]:
        for place, one in enumerate(stored):
            content = array(one)
            if isinstance(content, np.ndarray) and content.dtype == np.uint8:
                content = content.tobytes()
            if not isinstance(content, bytes):
                raise DataError(
                    f"{file}: image {place} is no encoded image but a {type(text(content)).__name__}"
                )
            yield content

    return len(stored), pictures


def _archive(file: Path) -> tuple[int, Callable[[], Iterator[Picture]]]:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            name = next((name for name in _PIXELS if name in archive), None)
            if name is None:
                raise DataError(f"{file} has no array {' or '.join(_PIXELS)}")
            block = pixel_block(archive[name], f"{file}: {name}")
    except (OSError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise DataError(
            f"{file} is no whole .npz file ({error}): was its download cut short? Fetch it again"
        ) from None
    except ValueError as error:
        raise (
            error
            if isinstance(error, DataError)
            else DataError(f"{file} is no .npz file of arrays ({error})")
        ) from None
    return len(block), lambda: iter(block)

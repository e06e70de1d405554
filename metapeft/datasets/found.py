"""A published data set in whichever form it lies on disk: found, checked, decoded into the cache or a store."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metapeft.base.errors import DataError, RunError
from metapeft.base.files import cache_folder, write_atomically
from metapeft.datasets.decoding import decoded
from metapeft.datasets.facts import Facts
from metapeft.datasets.forms import class_folders, hdf5, parquet, pickles, stored
from metapeft.datasets.forms.source import Content, Picture, Source
from metapeft.datasets.images import SPLITS, ImageData
from metapeft.datasets.store import Images, cached_images, progress, signature

_CHUNK = 200
_log = logging.getLogger(__name__)
Finder = Callable[[Path, str], Source | None]


@dataclass(frozen=True)
class Found:
    """One split, checked: what it is, and how its pixels are made."""

    source: Source
    split: str
    classes: list[str]
    labels: list[int]
    names: list[str]
    content: Callable[[], Content]

    def counts(self) -> dict[str, int]:
        """Class -> number of its images."""
        counted = Counter(self.labels)
        return {name: counted[place] for place, name in enumerate(self.classes)}

    def chunks(self, size: int) -> Iterator[Images]:
        """The images in order, `(n, 3, size, size)` at a time."""
        pictures, shown = iter(self.content().pictures()), self.source.files[0]
        for start in progress(
            range(0, len(self.labels), _CHUNK), shown.parent.name, -(-len(self.labels) // _CHUNK)
        ):
            count = min(_CHUNK, len(self.labels) - start)
            block = [_pixels(picture, size, shown, start + i) for i, picture in zip(range(count), pictures)]
            if len(block) != count:
                raise DataError(
                    f"{shown} ends after {start + len(block)} of {len(self.labels)} images: was it cut short?"
                )
            yield np.stack(block)


def find(facts: Facts, folder: Path, split: str, first: Finder | None = None) -> Source | None:
    """The form in which a split lies in a folder: a store, `first`, pickles, HDF5, Parquet, class folders."""
    return (
        stored.find(folder, split)
        or (first(folder, split) if first else None)
        or pickles.find(folder, split, facts.pickles)
        or hdf5.find(folder, split, facts.folders)
        or parquet.find(folder, split)
        or class_folders.find(folder, split, facts.folders, facts.owner)
    )


def opened(
    facts: Facts, folder: Path, split: str, per_class: int | None, remedy: str, first: Finder | None = None
) -> Found:
    """A split, checked against what was published.

    Args:
        facts: of the data set.
        folder: where it lies.
        split: which one.
        per_class: images that each class must have; None: as many as there are.
        remedy: what takes what is there, for the sentence on a class that is short.
        first: finds a form of the data set's own.

    Raises:
        DataError: nothing is there, a part is missing, or it is not what was published.
    """
    source = find(facts, folder, split, first)
    if source is None:
        raise DataError(_missing(facts, folder, split, first))
    held: list[Content] = []

    def content() -> Content:
        if not held:
            held.append(source.open())
        return held[0]

    labels, names, order = _listing(facts.name, source, content)
    where = source.files[0] if len(source.files) <= 2 else folder
    classes = facts.ordered(where, split, labels, order)
    if per_class is not None:
        facts.check_per_class(where, Counter(labels), per_class, remedy)
    places = {name: place for place, name in enumerate(classes)}
    return Found(source, split, classes, [places[label] for label in labels], names, content)


def image_data(facts: Facts, folder: Path, found: Found, size: int) -> ImageData:
    """The split as `(images, 3, size, size)`: its store as it is, or decoded into the cache."""
    source, shape = found.source, (len(found.labels), 3, size, size)
    images: Images | None = stored.block(folder, found.split) if source.form == stored.FORM else None
    if images is None or images.shape != shape:
        name = f"{facts.name}-{found.split}-{size}"
        images = cached_images(name, signature(source.files), shape, lambda: found.chunks(size))
    return ImageData(
        torch.from_numpy(images), found.labels, found.classes, found.split, name=facts.name, mean=facts.mean,
        deviation=facts.deviation,
    )  # fmt: skip


def _listing(
    name: str, source: Source, content: Callable[[], Content]
) -> tuple[list[str], list[str], list[str]]:
    """Labels, file names and order of classes; kept in the cache where the form gives them only with all pixels."""
    kept = None
    if source.slow:
        digest = hashlib.sha256(signature(source.files).encode()).hexdigest()[:20]
        kept = cache_folder() / f"{name}-labels-{digest}.json"
        try:
            labels, names, order = json.loads(kept.read_text("utf-8"))
            return labels, names, order
        except (OSError, ValueError, TypeError):
            pass
    found = content()
    listing = list(found.labels), list(found.names), list(found.order)
    if kept is not None:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json.dumps(listing).encode())
        except (OSError, RunError) as error:
            _log.warning(
                "cannot keep the labels of %s (%s): they are read again next time", source.files[0], error
            )
    return listing


def _missing(facts: Facts, folder: Path, split: str, first: Finder | None) -> str:
    for other in SPLITS:
        source = find(facts, folder, other, first) if other != split else None
        if source is not None:
            file = source.files[0]
            if source.form == "class folders":
                file = file.parent.parent
            return (
                f"{folder} holds the {other} split of {facts.title} ({source.form}, {file.name}), but nothing of the "
                f"{split} split: its counterpart is missing"
            )
    names = ", ".join(pattern.format("train") for pattern in facts.pickles)
    return (
        f"no {facts.title} in {folder}: put there class folders (train/, val/ and test/ with a folder a class), "
        f"{f'pickles ({names}), ' if names else ''}torchmeta's train_data.hdf5 and train_labels.json, or Parquet files "
        f"(train-*.parquet), and the same for val and test{facts.places}"
    )


def _pixels(picture: Picture, size: int, file: Path, place: int) -> Images:
    if isinstance(picture, Path):
        return decoded(picture, size, 3)
    if isinstance(picture, bytes):
        return decoded(Path(f"image {place} of {file}"), size, 3, content=picture)
    if picture.shape[:2] != (size, size):
        picture = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))
    return picture.transpose(2, 0, 1)

"""The classes that episodes are drawn from, and which of their images are support and which are query."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metapeft.base import counter
from metapeft.episodes.sizes import Sizes

_log = logging.getLogger("metapeft")
_Mask = NDArray[np.bool_]


class ClassImages:
    """The classes of a data set that have images enough, and draws of their images.

    Args:
        dataset: with `.labels` and `.classes`. sizes: of the episodes.

    Attributes:
        left_out: names of the classes that have too few.
        queries: the most queries that a class of an episode has.
        even: whether every class gives as many queries, where ways and shots do not vary.

    Raises:
        ValueError: a class with too few images, where that is refused; more ways than classes.
    """

    def __init__(self, dataset: Any, sizes: Sizes) -> None:
        self.sizes = sizes
        labels = dataset.labels.cpu().numpy()
        counts = np.bincount(labels, minlength=len(dataset.classes))
        self._order = labels.argsort(kind="stable").astype(np.int64)
        self._ids = np.flatnonzero(counts >= sizes.least)
        _check(dataset, counts, self._ids, sizes)
        self.left_out = tuple(dataset.classes[i] for i in np.flatnonzero(counts < sizes.least))
        if self.left_out:
            _log.warning(
                "%s: %d of %d classes have fewer than %d images and are left out, such as %r",
                dataset.name, len(self.left_out), len(counts), sizes.least, self.left_out[0],
            )  # fmt: skip
        self._counts, self._starts = counts[self._ids], (counts.cumsum() - counts)[self._ids]
        most = int(self._counts.max()) - sizes.shots[0]
        self.queries = most if isinstance(sizes.queries, str) else min(most, sizes.queries)
        self.even = bool((self._counts >= sizes.shots[1] + self.queries).all())

    def draw(
        self, classes: counter.Words, images: counter.Words, shots: counter.Integers
    ) -> tuple[counter.Integers, counter.Integers, counter.Integers, _Mask | None]:
        """Classes and their images, uniform without replacement.

        Of a class in random order the first `K` images, K the most shots, have the support set's places; the queries
        follow and, where they are all that is left, those of the K that this episode does not show.

        Args:
            classes, images: keys `(T,)`. shots: of each class, `(T, N)`.

        Returns:
            Ids of classes `(T, N)`; places in the data set `(T, N, K)` and `(T, N, Q)`; which of the latter there are,
            None for all of them.
        """
        tasks, ways = shots.shape
        most, queries = self.sizes.shots[1], self.queries
        which = counter.draw(classes, np.full(tasks, len(self._ids)), ways)
        held, starts = self._counts[which], self._starts[which][..., None]
        rows = counter.words(images, ways).ravel()
        drawn = counter.draw(rows, held.ravel(), most + queries).reshape(tasks, ways, -1)
        mask = None
        if not self.even:
            place = most + np.arange(queries)
            left = (held - shots)[..., None]
            mask = np.arange(queries) < left
            # past the last image of the class: those of the support set's places that are not shown
            turned = np.where(place < held[..., None], place, shots[..., None] + place - held[..., None])
            found = np.take_along_axis(drawn, np.where(mask, turned, 0), axis=2)
            drawn = np.concatenate([drawn[..., :most], found], axis=2)
        places = self._order[starts + drawn]
        return self._ids[which], places[..., :most], places[..., most:], mask


def _check(dataset: Any, counts: counter.Integers, ids: counter.Integers, sizes: Sizes) -> None:
    """Raise ValueError for too few classes, and for one with too few images that is not left out."""
    (ways, shots, queries), split = sizes.as_given(), f"in its {dataset.split} split"
    if sizes.ways[1] > len(counts):
        raise ValueError(
            f"ways={ways} needs {sizes.ways[1]} classes, but {dataset.name} has {len(counts)} {split}"
            f"{getattr(dataset, 'more_classes', '')}"
        )
    small = int((counts < sizes.least).sum())
    wanted = f"shots={shots} and queries={queries} need {sizes.least} images a class"
    if small and sizes.small == "refuse":
        least = int(counts.argmin())
        cap = "" if isinstance(sizes.queries, str) else ', small="cap" takes the queries that there are'
        raise ValueError(
            f"{wanted}, but class {dataset.classes[least]!r} of {dataset.name} has {counts[least]}: "
            f'small="skip" leaves out classes with fewer ({small} of {len(counts)} here){cap}'
        )
    if sizes.ways[1] > len(ids):
        raise ValueError(
            f"ways={ways} needs {sizes.ways[1]} classes, but only {len(ids)} of the {len(counts)} of {dataset.name} "
            f"{split} have {sizes.least} images: fewer ways, shots or queries"
        )

"""Episodes as a pure function of a data set, a few numbers and the episode's own number."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metapeft.datasets.rotated import Rotated
from metapeft.episodes import counter
from metapeft.episodes.episode import Episode, EpisodeBatch
from metapeft.episodes.sizes import Sizes

# Keys below an episode's key. Changing one changes every published index list.
_PURPOSES = 6
_SIZES, _CLASSES, _IMAGES, _SHIFT, _AUGMENT, _TASK = range(_PURPOSES)

Range = int | tuple[int, int]


class EpisodeSampler:
    """`sampler[i]` is episode `i`, `sampler.batch(start, count)` episodes `start .. start + count - 1`.

    A pure function of its arguments and `i`: classes, and images within a class, are drawn uniformly without
    replacement and in random order by a counter-based hash (`metapeft.episodes.counter`); no image occurs
    twice in an episode. A map-style data set for torch's `DataLoader`: with `batch_size=None`, or with
    `collate_fn=EpisodeBatch.stack`.

    Args:
        dataset: an `ImageData`, or anything with its `.labels .classes .gather(index)`; or a family of
            regression tasks with `.draw(keys, count)`, such as the data set `"sinusoid"` (then `ways=1`).
        ways: N, classes an episode; `(low, high)` draws it, uniformly, for each episode.
        shots: K, support images a class; `(low, high)` draws it for each episode.
        queries: Q, query images a class.
        seed: 0 to 2^63 - 1.
        shift: True draws one transformation an episode, shared by support and query, from the kinds that
            belong to the data's split (`metapeft.episodes.Shift`); or a callable `(images (T, n, C, H, W)
            uint8, seeds (T,) int64) -> images` of your own.
        augment: a callable `(images (T, n, C, H, W) uint8, seeds (T, n) int64) -> images`, applied before the
            shift to each image on its own, such as `metapeft.episodes.Augment()`.
        rotations: each class turned by 0, 90, 180 and 270 degrees is a class of its own; `sampler.dataset` is
            then the four times larger data set (`metapeft.datasets.Rotated`) that indices point into.
        imbalanced: with a range of shots: draw the shots for each class on its own.
        episodes: how many there are, `len(sampler)`; default 2^63 - 1.

    Raises:
        ValueError: for sizes that the data set cannot serve, and for options that would have no effect.

    Example:
        >>> from metapeft.datasets.images import ImageData
        >>> data = ImageData(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.arange(40) % 4, list("abcd"))
        >>> sampler = EpisodeSampler(data, ways=3, shots=1, queries=2, seed=0)
        >>> sampler[7].support_index.tolist() == sampler.batch(5, 4).support_index[2].tolist()
        True
        >>> sampler.batch(0, 8).query_x.shape
        torch.Size([8, 6, 1, 4, 4])
    """

    def __init__(
        self,
        dataset: Any,
        ways: Range = 5,
        shots: Range = 1,
        queries: int = 15,
        seed: int = 0,
        shift: Any = False,
        *,
        augment: Any = None,
        rotations: bool = False,
        imbalanced: bool = False,
        episodes: int | None = None,
    ) -> None:
        self.generative = callable(getattr(dataset, "draw", None))
        self.sizes = Sizes.checked(ways, shots, queries, imbalanced)
        self.dataset: Any = Rotated(dataset) if rotations else dataset
        self.ways, self.shots, self.queries = ways, shots, queries
        self.seed, self.rotations, self.imbalanced = seed, rotations, imbalanced
        self.shift = _resolve_shift(shift, getattr(dataset, "split", "train"))
        self.augment = augment
        self.episodes = sys.maxsize if episodes is None else episodes
        if not isinstance(self.episodes, int) or not 1 <= self.episodes <= sys.maxsize:
            raise ValueError(f"episodes must be an integer from 1 to {sys.maxsize}, not {episodes!r}")
        self._root = counter.root(seed)
        if self.generative:
            self._check_generative(ways, shots, shift, augment, rotations)
        else:
            self._index_classes()

    def __len__(self) -> int:
        return self.episodes

    def __getitem__(self, i: int) -> Episode:
        if not 0 <= i < self.episodes:
            raise IndexError(f"episode {i} is not one of 0 .. {self.episodes - 1}")
        return self.batch(int(i), 1).episode(0)

    def batch(self, start: int, count: int) -> EpisodeBatch:
        """Episodes `start .. start + count - 1`, stacked; ValueError for numbers outside `0 .. len - 1`."""
        if count < 1 or start < 0 or start + count > self.episodes:
            raise ValueError(
                f"start={start}, count={count}: a batch has at least one episode, all of them from 0 to "
                f"{self.episodes - 1}"
            )
        key = self._keys(start, count)
        return self._regression(key) if self.generative else self._classification(key)

    def indices(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The draw alone, unpadded: classes `(T, N)` and places in the data set `(T, N, K + Q)`."""
        return self._draw(self._keys(start, count))

    def _keys(self, start: int, count: int) -> counter.Words:
        """`(T, 6)`: for each episode a key for each purpose."""
        number = np.uint64(start) + np.arange(count, dtype=np.uint64)
        return counter.words(counter.child(self._root, number), _PURPOSES)

    def _draw(self, key: counter.Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ways, each = self.sizes.ways[1], self.sizes.shots[1] + self.sizes.queries
        classes = counter.draw(key[:, _CLASSES], np.full(len(key), len(self._counts)), ways)
        rows = counter.words(key[:, _IMAGES], ways)
        drawn = counter.draw(rows.ravel(), self._counts[classes].ravel(), each).reshape(len(key), ways, each)
        return classes, self._order[self._starts[classes][..., None] + drawn]

    def _classification(self, key: counter.Words) -> EpisodeBatch:
        classes, drawn = self._draw(key)
        masks = self.sizes.masks(key[:, _SIZES])
        shots = self.sizes.shots[1]
        fields: dict[str, Tensor] = {}
        for part, places in (("support", drawn[..., :shots]), ("query", drawn[..., shots:])):
            labels = np.array(np.broadcast_to(np.arange(self.sizes.ways[1])[:, None], places.shape))
            fields[f"{part}_index"] = torch.from_numpy(places.reshape(len(key), -1))
            fields[f"{part}_y"] = torch.from_numpy(labels.reshape(len(key), -1))
        fields |= self._images(key, fields["support_index"], fields["query_index"])
        if masks is not None:
            classes = np.where(masks.pop("classes"), classes, -1)
            for part, mask in masks.items():
                _pad(fields, part, torch.from_numpy(mask.reshape(len(key), -1)))
        return EpisodeBatch(classes=torch.from_numpy(classes), **fields)

    def _images(self, key: counter.Words, support: Tensor, query: Tensor) -> dict[str, Tensor]:
        if self.shift is None and self.augment is None:
            return {"support_x": self.dataset.gather(support), "query_x": self.dataset.gather(query)}
        images = self.dataset.gather(torch.cat([support, query], dim=1))
        if self.augment is not None:
            rows = counter.words(key[:, _AUGMENT], images.shape[1])
            images = _checked_images(self.augment(images, _seeds(rows)), images, "augment")
        if self.shift is not None:
            images = _checked_images(self.shift(images, _seeds(key[:, _SHIFT])), images, "shift")
        parts = images.split([support.shape[1], query.shape[1]], dim=1)
        return {"support_x": parts[0].contiguous(), "query_x": parts[1].contiguous()}

    def _regression(self, key: counter.Words) -> EpisodeBatch:
        shots = self.sizes.shots[1]
        x, y = self.dataset.draw(key[:, _TASK], shots + self.queries)
        return EpisodeBatch(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def _index_classes(self) -> None:
        labels = self.dataset.labels.cpu().numpy()
        self._counts = np.bincount(labels, minlength=len(self.dataset.classes))
        self._starts = self._counts.cumsum() - self._counts
        self._order = labels.argsort(kind="stable").astype(np.int64)
        ways, each = self.sizes.ways[1], self.sizes.shots[1] + self.sizes.queries
        if ways > len(self._counts):
            raise ValueError(
                f"ways={self.ways} needs {ways} classes, but {self.dataset.name} has {len(self._counts)} "
                f"in its {self.dataset.split} split"
            )
        least = int(self._counts.argmin())
        if each > self._counts[least]:
            raise ValueError(
                f"shots={self.shots} and queries={self.queries} need {each} images a class, but class "
                f"{self.dataset.classes[least]!r} of {self.dataset.name} has {self._counts[least]}"
            )

    def _check_generative(self, ways: Range, shots: Range, shift: Any, augment: Any, rotations: bool) -> None:
        if ways != 1:
            raise ValueError(f"ways must be 1 for the regression tasks of {self.dataset.name}, not {ways!r}")
        if not isinstance(shots, int):
            raise ValueError(f"shots must be one number for the tasks of {self.dataset.name}, not {shots!r}")
        for name, value in (("shift", shift), ("augment", augment), ("rotations", rotations)):
            if value not in (None, False):
                raise ValueError(
                    f"{name} acts on images: it has no effect on {self.dataset.name}; leave it out"
                )


def _pad(fields: dict[str, Tensor], part: str, mask: Tensor) -> None:
    images = fields[f"{part}_x"]
    images[~mask.to(images.device)] = 0
    fields[f"{part}_mask"] = mask
    fields[f"{part}_index"].masked_fill_(~mask, -1)
    fields[f"{part}_y"].masked_fill_(~mask, 0)


def _seeds(key: counter.Words) -> Tensor:
    return torch.from_numpy((key >> np.uint64(1)).astype(np.int64))


def _resolve_shift(shift: Any, split: str) -> Any:
    if shift is None or shift is False:
        return None
    if shift is True:
        from metapeft.episodes.shift import Shift

        return Shift.of_split(split)
    if not callable(shift):
        raise ValueError(f"shift must be True, False or a callable (images, seeds) -> images, not {shift!r}")
    return shift


def _checked_images(found: Any, given: Tensor, argument: str) -> Tensor:
    if not isinstance(found, Tensor) or found.dtype != given.dtype or found.shape != given.shape:
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{argument} must return {given.dtype} {tuple(given.shape)}, as it was given, not {what}"
        )
    return found

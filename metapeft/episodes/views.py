"""Our episodes in the forms that code for torchmeta and for learn2learn takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.episodes.episode import EpisodeBatch

Preprocess = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


class _View:
    """Base: a sampler, the number of the next episode, and how its images become floats.

    Args:
        sampler: with `.batch(start, count)`, such as an `EpisodeSampler`.
        start: number of the first episode.
        preprocess: images to floats; None for the data set's own, or `x / 255` where it has none and x is uint8.
    """

    def __init__(self, sampler: Any, start: int = 0, preprocess: Preprocess | None = None) -> None:
        if not callable(getattr(sampler, "batch", None)):
            raise ValueError(
                f"sampler is of type {type(sampler).__name__}, without .batch(start, count): an mp.EpisodeSampler is "
                "needed"
            )
        whole(0, start=start)
        if preprocess is not None and not callable(preprocess):
            raise ValueError(
                f"preprocess={preprocess!r}: allowed is None, or a function of images that gives floats"
            )
        self.sampler, self.next = sampler, start
        own = getattr(getattr(sampler, "dataset", None), "preprocess", None)
        self.preprocess: Preprocess = preprocess or (own if callable(own) else _as_floats)

    def drawn(self, start: int, count: int) -> EpisodeBatch:
        """Episodes, refused where their sizes vary: neither library has masks."""
        batch: EpisodeBatch = self.sampler.batch(start, count)
        if batch.support_mask is not None or batch.query_mask is not None:
            raise ValueError(
                "sampler has ways or shots that vary: the other library has no masks; give one number each"
            )
        return batch


class MetaBatches(_View):
    """A sampler as torchmeta's `BatchMetaDataLoader`: batches `{"train": (x, y), "test": (x, y)}`.

    x is `(T, n, ...)` in floats, y `(T, n)`. A second pass goes on where the first ended, so that epochs see other
    tasks, as with a loader that shuffles.

    Args:
        sampler, start, preprocess: where episodes come from, the number of the first, images to floats (None for the
            data set's own).
        batch_size: T.
        batches: so many a pass; None for all that the sampler has.

    Source: Deleu et al. 2019 (torchmeta, arXiv 1909.06576), section 3.2.

    Example:
        >>> from metapeft.datasets.images import ImageData
        >>> from metapeft.episodes.sampler import EpisodeSampler
        >>> data = ImageData(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8) % 2, ["x", "y"])
        >>> loader = MetaBatches(EpisodeSampler(data, ways=2, shots=1, queries=3), batch_size=4, batches=2)
        >>> [batch["test"][0].shape for batch in loader]
        [torch.Size([4, 6, 1, 4, 4]), torch.Size([4, 6, 1, 4, 4])]
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        batches: int | None = None,
        start: int = 0,
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__(sampler, start, preprocess)
        whole(batch_size=batch_size, batches=1 if batches is None else batches)
        self.batch_size, self.batches = batch_size, batches

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size if self.batches is None else self.batches

    def __iter__(self) -> Iterator[dict[str, Pair]]:
        for _ in range(len(self)):
            batch = self.drawn(self.next, self.batch_size)
            self.next += self.batch_size
            yield {
                "train": (self.preprocess(batch.support_x), batch.support_y),
                "test": (self.preprocess(batch.query_x), batch.query_y),
            }


class TaskPairs(_View):
    """A sampler as learn2learn's `Taskset`: `.sample()` is the next task, `[i]` task i, each a pair (data, labels).

    data is `(N (K + Q), ...)` in floats, labels `(N (K + Q),)`, class by class, in each class the K support items
    first. Within a class items are in random order, so that code may pick any K of them for the support set.

    Args:
        sampler, start, preprocess: where episodes come from, the number of the first, images to floats (None for the
            data set's own).
        ahead: so many tasks are drawn at a time.

    Source: Arnold et al. 2020 (learn2learn, arXiv 2008.12284), section 3.

    Example:
        >>> from metapeft.datasets.images import ImageData
        >>> from metapeft.episodes.sampler import EpisodeSampler
        >>> data = ImageData(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8) % 2, ["x", "y"])
        >>> tasks = TaskPairs(EpisodeSampler(data, ways=2, shots=1, queries=2))
        >>> x, y = tasks.sample()
        >>> x.shape, y
        (torch.Size([6, 1, 4, 4]), tensor([0, 0, 0, 1, 1, 1]))
    """

    def __init__(
        self, sampler: Any, start: int = 0, preprocess: Preprocess | None = None, ahead: int = 64
    ) -> None:
        super().__init__(sampler, start, preprocess)
        whole(ahead=ahead)
        self.ahead = ahead
        self._block: tuple[int, Tensor, Tensor] | None = None  # of the first episode's number

    def sample(self) -> Pair:
        """The next task."""
        self.next += 1
        return self[self.next - 1]

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self):
            raise IndexError(f"task {i} is not one of 0 .. {len(self) - 1}")
        first = i - i % self.ahead
        if self._block is None or self._block[0] != first:
            self._block = (first, *self._pairs(first))
        return self._block[1][i - first], self._block[2][i - first]

    def _pairs(self, first: int) -> Pair:
        """Data and labels of up to `ahead` tasks, with a task axis."""
        batch = self.drawn(first, min(self.ahead, len(self) - first))
        tasks, ways = len(batch), batch.ways
        x, y = (
            torch.cat([part.reshape(tasks, ways, -1, *part.shape[2:]) for part in parts], dim=2).flatten(1, 2)
            for parts in ((batch.support_x, batch.query_x), (batch.support_y, batch.query_y))
        )
        return self.preprocess(x), y


def _as_floats(x: Tensor) -> Tensor:
    return x / 255 if x.dtype == torch.uint8 else x

"""Episodes of another library's source: torchmeta's data sets and loaders, learn2learn's tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from metapeft.base.arguments import whole
from metapeft.episodes.episode import EpisodeBatch

Pair = tuple[Tensor, Tensor]
_PARTS = (("train", "test"), ("support", "query"))  # as torchmeta's splitters name them
_SOURCES = (
    "torchmeta's BatchMetaDataLoader, or other batches {'train': (x, y), 'test': (x, y)} with a task axis; one of its "
    "data sets with .sample_task(); learn2learn's Taskset, or what else has .sample()"
)


class EpisodeStream:
    """Another library's tasks as episodes: `stream.batch(start, count)` is what trainers and `mp.evaluate` ask for.

    What such a source draws is no function of an episode's number: the next `count` tasks are given, whatever `start`
    is. Of a `Taskset` with a number of tasks, episode `i` is its task `i % num_tasks`, and so always the same.

    Args:
        source: batches `{"train": (x (T, n, ...), y (T, n)), "test": ...}`, or named `"support"` and `"query"`, from a
            loader that is begun anew where it ends; a data set whose `.sample_task()` has such parts, each a list of
            pairs (x, y); a set of tasks whose `.sample()` is one pair `(x (n, ...), y (n,))` of a whole task.
        shots: K, where the source does not divide a task itself: the first K items of each class are its support set,
            the others are queries. None where it does.

    Raises:
        ValueError: for what is none of these, labels that are not 0 .. N - 1, and items that are not tensors.

    Source: Deleu et al. 2019 (torchmeta, arXiv 1909.06576); Arnold et al. 2020 (learn2learn, arXiv 2008.12284).

    Example:
        >>> x, y = torch.zeros(3, 2, 4), torch.tensor([[0, 1]] * 3)
        >>> stream = EpisodeStream([{"train": (x, y), "test": (x, y)}])
        >>> stream.batch(0, 2).support_x.shape, len(stream.batch(2, 4))  # the loader has 3 tasks, and is begun anew
        (torch.Size([2, 2, 4]), 4)
    """

    def __init__(self, source: Any, shots: int | None = None) -> None:
        self.whole_tasks = callable(getattr(source, "sample", None))
        self.drawn = callable(getattr(source, "sample_task", None))
        if not (self.whole_tasks or self.drawn or hasattr(source, "__iter__")):
            raise ValueError(f"source is of type {type(source).__name__}: allowed are {_SOURCES}")
        if self.whole_tasks and shots is None:
            raise ValueError(
                f"shots=None: {type(source).__name__} has tasks that are not divided; say how many items of each class "
                "are the support set"
            )
        if not self.whole_tasks and shots is not None:
            raise ValueError(
                f"shots={shots!r} has no effect: {type(source).__name__} divides its tasks itself"
            )
        if shots is not None:
            whole(shots=shots)
        self.source, self.shots = source, shots
        self._batches: Iterator[Any] = iter(())
        self._left: EpisodeBatch | None = None  # of a loader's last batch

    def batch(self, start: int, count: int) -> EpisodeBatch:
        """`count` episodes, stacked."""
        whole(0, start=start)
        whole(count=count)
        if self.whole_tasks:
            return _stacked([self._divided(*self._whole_task(start + i)) for i in range(count)])
        if self.drawn:
            tasks = [self.source.sample_task() for _ in range(count)]
            return _stacked([_episode(_one_task(task)) for task in tasks])
        found: list[EpisodeBatch] = []
        while (missing := count - sum(map(len, found))) > 0:
            batch, self._left = self._next_batch(), None
            found.append(batch.tasks(slice(0, missing)))
            if len(batch) > missing:
                self._left = batch.tasks(slice(missing, None))
        return _stacked(found)

    def _whole_task(self, number: int) -> tuple[Any, Any]:
        count = getattr(self.source, "num_tasks", -1)
        task = self.source[number % count] if isinstance(count, int) and count > 0 else self.source.sample()
        if not (isinstance(task, tuple | list) and len(task) == 2):
            raise ValueError(
                f"a task of {type(self.source).__name__} is of type {type(task).__name__}: a pair of data and labels "
                "is needed, as LoadData gives it"
            )
        return task[0], task[1]

    def _divided(self, x: Any, y: Any) -> EpisodeBatch:
        """One task, class by class: of each class the first `shots` items, and the others."""
        items, labels = _tensors(x, y, "a task")
        if labels.ndim != 1 or labels.is_floating_point() or len(items) != len(labels):
            raise ValueError(
                f"a task has labels {labels.dtype} {tuple(labels.shape)} for items {tuple(items.shape)}: one whole "
                "number an item is needed where the support set is picked by class"
            )
        order = labels.argsort(stable=True)
        counts = [count for _, count in sorted(Counter(labels.tolist()).items())]
        shots = self.shots or 0
        if len(set(counts)) != 1 or counts[0] <= shots:
            raise ValueError(
                f"a task has {counts} items of its classes: equally many are needed, more than shots={shots}"
            )
        rows = order.view(len(counts), -1)
        support, query = rows[:, :shots].flatten(), rows[:, shots:].flatten()
        return _episode(
            {
                part: (items[at].unsqueeze(0), labels[at].unsqueeze(0))
                for part, at in (("train", support), ("test", query))
            }
        )

    def _next_batch(self) -> EpisodeBatch:
        if self._left is not None:
            return self._left
        for attempt in range(2):
            for batch in self._batches:
                return _episode(batch)
            if not attempt:
                self._batches = iter(self.source)
        raise ValueError(f"source, of type {type(self.source).__name__}, has no batches")

    def __repr__(self) -> str:
        shots = "" if self.shots is None else f", shots={self.shots}"
        return f"EpisodeStream({type(self.source).__name__}{shots})"


def _parts(batch: Any) -> tuple[Any, Any]:
    """Support and query of what a source gives, by the names that it has for them."""
    for support, query in _PARTS:
        if isinstance(batch, Mapping) and support in batch and query in batch:
            return batch[support], batch[query]
    said = f"with {list(batch)}" if isinstance(batch, Mapping) else f"of type {type(batch).__name__}"
    raise ValueError(
        f"a batch {said} is no task that is divided: 'train' and 'test' are needed, or 'support' and 'query', as "
        "torchmeta's ClassSplitter makes them (dataset_transform=)"
    )


def _one_task(task: Any) -> dict[str, Any]:
    """The items of each part of one task, collated, with a task axis."""
    found = {}
    for name, part in zip(("train", "test"), _parts(task)):
        try:
            x, y = default_collate([part[i] for i in range(len(part))])
        except TypeError as error:
            raise ValueError(
                f"the items of a task cannot be stacked ({error}): images have to be tensors or arrays, such as by "
                "transform=torchvision.transforms.ToTensor() of the data set"
            ) from None
        found[name] = (x.unsqueeze(0), y.unsqueeze(0))
    return found


def _episode(batch: Any) -> EpisodeBatch:
    """A batch of divided tasks, its labels checked."""
    (support_x, support_y), (query_x, query_y) = (
        _tensors(pair[0], pair[1], where) for pair, where in zip(_parts(batch), ("support", "query"))
    )
    if not support_y.is_floating_point():
        low, high = (int(end) for end in torch.cat([support_y, query_y], dim=1).aminmax())
        present = torch.zeros(len(support_y), max(high, 0) + 1, dtype=torch.bool, device=support_y.device)
        if low >= 0:
            present.scatter_(1, support_y, True)
        if low < 0 or not bool(present.all()):
            raise ValueError(
                f"a task has labels {sorted(set(support_y[0].tolist()))} in its support set: each of 0 .. N - 1 is "
                "needed (torchmeta: target_transform=Categorical(num_classes=N); learn2learn: RemapLabels)"
            )
    return EpisodeBatch(support_x, support_y, query_x, query_y)


def _tensors(x: Any, y: Any, where: str) -> Pair:
    """Items and labels as tensors, whole numbers as int64."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise ValueError(
            f"{where}: items are of type {type(x).__name__}, labels of type {type(y).__name__}; tensors are needed"
        )
    return x, y if y.is_floating_point() else y.long()


def _stacked(parts: list[EpisodeBatch]) -> EpisodeBatch:
    fields = ("support_x", "support_y", "query_x", "query_y")
    return EpisodeBatch(**{name: torch.cat([getattr(part, name) for part in parts]) for name in fields})

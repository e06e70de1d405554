"""What one task, and a batch of tasks, consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from metapeft.base.trees import mapped, stacked, tree_leaves


@dataclass(frozen=True, eq=False)
class Episode:
    """One task: a support set to adapt to and a query set to be judged on.

    Letters: N ways, K shots, Q queries a class, `S = N K`. Items stand class by class, so that fixed sizes
    give `support_y = 0 .. 0 1 .. 1 ...`. Where sizes vary, they are padded to the largest: a padded item
    has a zero image, label 0, index -1 and mask False, a padded class the id -1.

    Args:
        support_x: `(S, ...)`, uint8 for images; or a dict or tuple of such tensors, the arguments of a forward.
        support_y: `(S,)` int64 in `0 .. N-1`, or `(S, out)` float for regression.
        query_x: `(N Q, ...)`, likewise.
        query_y: as support_y.
        classes: `(N,)` int64, the data set's ids of labels `0 .. N-1`; None for regression.
        support_index: `(S,)` int64, places in the data set; None where items are made up, not stored.
        query_index: `(N Q,)`, likewise.
        support_mask: `(S,)` bool, True for what is there; None unless sizes vary.
        query_mask: `(N Q,)`, likewise.

    Example:
        >>> x, y = torch.zeros(2, 3), torch.arange(2)
        >>> Episode(x, y, x, y, classes=torch.tensor([7, 4])).ways
        2
    """

    support_x: Any
    support_y: Tensor
    query_x: Any
    query_y: Tensor
    classes: Tensor | None = None
    support_index: Tensor | None = None
    query_index: Tensor | None = None
    support_mask: Tensor | None = None
    query_mask: Tensor | None = None

    def fields(self) -> dict[str, Any]:
        """Name -> tensor or None, in the order of the definition; nothing is copied."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in page-locked memory; torch's `DataLoader(pin_memory=True)` calls this."""
        return self._map(Tensor.pin_memory)

    @property
    def ways(self) -> int:
        """N, the number of classes (padded ones included); without them the largest label + 1; 1 for regression.

        Labels with more axes than one an item has (words of a vocabulary) are no classes.
        """
        if self.classes is not None:
            return self.classes.shape[-1]
        axes = 2 if isinstance(self, EpisodeBatch) else 1
        labels = [
            y
            for y in (self.support_y, self.query_y)
            if isinstance(y, Tensor) and y.dim() == axes and y.numel()
        ]
        if not labels or any(y.is_floating_point() for y in labels):
            return 1
        return max(1, 1 + max(int(y.max()) for y in labels))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        present = {name: value for name, value in self.fields().items() if value is not None}
        return dataclasses.replace(self, **{name: mapped(value, function) for name, value in present.items()})


@dataclass(frozen=True, eq=False)
class EpisodeBatch(Episode):
    """T episodes, stacked: every field of `Episode` with a leading task axis.

    Example:
        >>> x, y = torch.zeros(2, 3), torch.arange(2)
        >>> batch = EpisodeBatch.stack([Episode(x, y, x, y, y)] * 4)
        >>> len(batch), batch.ways, batch.tasks(slice(1, 3)).support_x.shape
        (4, 2, torch.Size([2, 2, 3]))
    """

    @classmethod
    def stack(cls, episodes: Sequence[Episode]) -> EpisodeBatch:
        """Stack episodes of equal sizes; fits torch's `DataLoader(..., collate_fn=EpisodeBatch.stack)`."""
        if not episodes:
            raise ValueError("episodes is empty: a batch has at least one task")
        present = [name for name, value in episodes[0].fields().items() if value is not None]
        return cls(**{name: stacked([getattr(one, name) for one in episodes]) for name in present})

    def tasks(self, which: slice) -> EpisodeBatch:
        """Some tasks of the batch, as views: `batch.tasks(slice(0, 4))`."""
        return self._map(lambda value: value[which])

    def episode(self, task: int) -> Episode:
        """One task of the batch, without the task axis."""
        present = {name: value for name, value in self.fields().items() if value is not None}
        return Episode(**{name: mapped(value, lambda leaf: leaf[task]) for name, value in present.items()})

    def __len__(self) -> int:
        return len(tree_leaves(self.support_x)[0])

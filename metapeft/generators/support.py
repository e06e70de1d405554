"""What a generator is shown of a task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from metapeft.episodes.class_rows import one_hot


@dataclass(frozen=True, eq=False)
class Support:
    """The support sets of T tasks as a generator reads them; for a generator per input, inputs without labels.

    Args:
        features: `(T, S, F)`; per input `(T, B, F)`.
        y: labels `(T, S)` int64 in `0 .. ways - 1`, or regression targets `(T, S, out)`; None per input.
        mask: `(T, S)`, True for items that count; None where all do.
        ways: the number of classes N; 1 in regression.

    Example:
        >>> import torch
        >>> support = Support(torch.tensor([[[1.0], [3.5], [9.0]]]), torch.tensor([[0, 0, 1]]), ways=2)
        >>> support.mean.tolist(), support.rows.sum(1).tolist()  # items of each class
        ([[4.5]], [[2.0, 1.0]])
    """

    features: Tensor
    y: Tensor | None = None
    mask: Tensor | None = None
    ways: int = 1

    @cached_property
    def weight(self) -> Tensor:
        """How much each item counts, `(T, S, 1)`: 1, or 0 where the mask leaves it out."""
        shape = (*self.features.shape[:2], 1)
        return self.features.new_ones(shape) if self.mask is None else self.mask.to(self.features).view(shape)

    @cached_property
    def mean(self) -> Tensor:
        """The mean feature of each task, `(T, F)`."""
        return self.over_items(self.features)

    @cached_property
    def rows(self) -> Tensor:
        """Class labels as rows `(T, S, N)` of zeros and ones.

        Raises ValueError where there are none.
        """
        if self.y is None or self.y.is_floating_point():
            raise ValueError(
                "this generator reads class labels, and the support set has none: PairEncoder reads regression "
                "targets, MappingNet no labels at all"
            )
        return one_hot(self.y, self.ways, self.mask, self.features)

    @property
    def targets(self) -> Tensor:
        """Regression targets `(T, S, out)`; raises ValueError where there are none."""
        if self.y is None or not self.y.is_floating_point():
            raise ValueError(
                "this generator reads regression targets, and the support set has class labels or none: ClassEncoder "
                "reads classes, MappingNet no labels at all"
            )
        return self.y.reshape(*self.y.shape[:2], -1)

    def over_items(self, values: Tensor) -> Tensor:
        """The mean of values `(T, S, ...)` over the items that count, `(T, ...)`."""
        if self.mask is None:
            return values.mean(1)
        weight = self.weight
        return (values * weight).sum(1) / weight.sum(1)

    def replaced(self, other: Support) -> Support:
        """What `other` shows, in place of this; raises ValueError where the numbers of tasks differ."""
        if other.features.shape[0] != self.features.shape[0]:
            raise ValueError(
                f"{other.features.shape[0]} support sets in place of {self.features.shape[0]}: one a task"
            )
        return other

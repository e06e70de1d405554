"""What one run of an attached backbone knows: how many tasks, their factors, how to normalise.

The leaves of the skeleton read it from a `Holder` while the backbone runs; it lives no longer than that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from metapeft.updates.format import Factors, Format, Geometry, per_row


@dataclass(frozen=True)
class Update:
    """One parameter's update in one run: its format, its geometry and its factors `(T or 1, ...)`."""

    format: Format
    geometry: Geometry
    factors: Factors
    tasks: int
    per_input: bool = False

    def expand(self, value: Tensor) -> Tensor:
        """Give a tensor `(1 or T, ...)` its full task axis."""
        return value.expand(self.tasks, *value.shape[1:])

    @cached_property
    def down(self) -> Tensor:
        return self.expand(self.format.down(self.factors))

    @cached_property
    def up(self) -> Tensor:
        return self.expand(self.format.up(self.factors, mixed=self.per_input))

    def mix(self, hidden: Tensor) -> Tensor:
        """Apply a seed per input to `hidden` `(T, M, channels)`, whose rows are `B` inputs one after another."""
        if not self.per_input:
            return hidden
        assert self.format.seed is not None
        items = self.factors[self.format.seed].shape[1]
        mixed = self.format.mix(hidden.unflatten(1, (items, -1)), self.factors)
        return mixed.flatten(1, 2)

    def delta(self, rows: int) -> Tensor:
        """The update as the layer stores it: `(T, *shape)`, or one for each of the `rows` inputs."""
        if self.format.dense:
            return self.expand(self.format.delta(self.factors))
        factors = self.factors
        if self.per_input:
            assert self.format.seed is not None
            return self.geometry.stored(self.format.delta(per_row(factors, rows, self.format.seed)))
        factors = {name: self.expand(value) for name, value in factors.items()}
        return self.geometry.stored(self.format.delta(factors))


@dataclass
class Call:
    """One run over `tasks * items` rows.

    `reference` says which items of a task the normalisation statistics are taken from: None means the buffers,
    else the first `reference` items, those that `mask` `(T, reference)` keeps. `statistics` receives, by the name
    of the normalisation layer, the mean and the biased variance `(T, C)` and the number of values behind them.
    """

    tasks: int
    items: int
    updates: dict[str, Update]
    reference: int | None = None
    mask: Tensor | None = None
    features: bool = False
    statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)
    classifier_output: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.tasks * self.items

    def batched(self, x: Tensor, axis: int = 0) -> Tensor:
        """Give an input that has no task axis yet (positions, shared tokens) one row per input."""
        size = x.shape[axis] if x.dim() > axis else 0
        if size and size % self.rows == 0:
            return x
        if size != 1:
            x = x.unsqueeze(axis)
        shape = list(x.shape)
        shape[axis] = self.rows
        return x.expand(shape)


class Holder:
    """Where the leaves of one attached backbone find the run that is going on, and which of them classifies."""

    def __init__(self, classifier: str | None) -> None:
        self.call: Call | None = None
        self.classifier = classifier

    def current(self) -> Call:
        if self.call is None:
            raise RuntimeError("an attached backbone runs only through the model that attach() returned")
        return self.call


def group_mean_variance(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance `(T, C)` of `x` `(T, S, C, L)` over items and positions, and their count `(T,)`.

    Args:
        x: activations of the reference items.
        mask: `(T, S)`, True for items that count; None for all.
    """
    tasks, items, _, length = x.shape
    if mask is None:
        variance, mean = torch.var_mean(x, dim=(1, 3), correction=0)
        return mean, variance, torch.full((tasks,), items * length, dtype=x.dtype, device=x.device)
    weight = mask.to(x.dtype).view(tasks, items, 1, 1)
    count = weight.sum((1, 2, 3)) * length
    mean = (x * weight).sum((1, 3)) / count[:, None]
    centred = (x - mean[:, None, :, None]) * weight
    return mean, centred.square().sum((1, 3)) / count[:, None], count

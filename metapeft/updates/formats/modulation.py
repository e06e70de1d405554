"""Shifts and gates of a layer's output, beside the low-rank update of its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metapeft.updates.formats.format import Factors, Geometry

SHIFT, GATE = "shift", "gate"


class HasModulation(Protocol):
    """A format, as far as shifts and gates are concerned."""

    @property
    def shift(self) -> bool:
        """Whether it has a shift."""

    @property
    def gate(self) -> bool:
        """Whether it has a gate."""


def names(format: HasModulation) -> tuple[str, ...]:
    """Those of `shift` and `gate` that a format has."""
    return tuple(name for name, there in ((SHIFT, format.shift), (GATE, format.gate)) if there)


def shapes(format: HasModulation, geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """`shift (out)` and `gate (out)`, those that the format has."""
    return dict.fromkeys(names(format), (geometry.out,))


def start(format: HasModulation, geometry: Geometry) -> dict[str, Tensor]:
    """Both 0, `(1, out)`: the layer's output as it is."""
    return {name: torch.zeros(1, geometry.out, dtype=torch.float32) for name in names(format)}


@dataclass(frozen=True)
class Modulation:
    """`y <- (1 + gate) y + shift` on a layer's output, `(T or 1, out)` each, or per input `(T or 1, B, out)`; None
    for none.

    Source: feature-wise linear modulation (Perez et al. 2018, arXiv 1709.07871), eq. 1, with `1 + gate` as its factor.

    Example:
        >>> one = Modulation(shift=torch.tensor([[1.0, 0.0]]), gate=torch.tensor([[0.0, 0.5]]))
        >>> one(torch.ones(2, 2), tasks=1, items=2, axis=-1)
        tensor([[2.0000, 1.5000],
                [2.0000, 1.5000]])
    """

    shift: Tensor | None = None
    gate: Tensor | None = None

    def __call__(self, y: Tensor, tasks: int, items: int, axis: int) -> Tensor:
        """The modulated output of a layer.

        Args:
            y: rows `(T B k, ...)`, k of each input, task by task. tasks, items: T and B. axis: of y that has `out`
                entries.
        """
        axis %= y.dim()
        for value, change in ((self.gate, torch.mul), (self.shift, torch.add)):
            if value is None:
                continue
            rows = tasks
            if value.dim() == 3:  # per input
                rows, value = tasks * items, value.expand(tasks, *value.shape[1:]).flatten(0, 1)
            shape = [1] * (y.dim() + 1)
            shape[0], shape[axis + 1] = value.shape
            split = torch.unflatten(y, 0, (rows, -1))
            y = change(split, (1.0 + value if change is torch.mul else value).view(shape)).flatten(0, 1)
        return y

    def merged(self, weight: Tensor, bias: Tensor | None, transposed: bool) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer that gives the modulated output, for one task's `(1, out)`.

        Args:
            weight: `(out, ...)`, or `(in, out)` where `transposed`. bias: `(out)`; None is 0.
        """
        out = weight.shape[1] if transposed else weight.shape[0]
        gate = weight.new_ones(out) if self.gate is None else 1.0 + self.gate[0]
        shift = weight.new_zeros(out) if self.shift is None else self.shift[0]
        scaled = weight * (gate if transposed else gate.view(-1, *[1] * (weight.dim() - 1)))
        return scaled, shift if bias is None else bias * gate + shift


def modulation(factors: Factors) -> Modulation | None:
    """The modulation among a site's factors, under their local names; None without."""
    shift, gate = factors.get(SHIFT), factors.get(GATE)
    return None if shift is None and gate is None else Modulation(shift, gate)

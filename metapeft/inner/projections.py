"""Projections onto convex sets: the nearest point of the set, for `BilevelTrainer(projections=)` and `Projected`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.base.arguments import number


@dataclass(frozen=True)
class Box:
    """`min(max(x, low), high)`, each entry for itself; None for no bound.

    Raises:
        ValueError: bounds that are no numbers, or leave nothing between them.

    Example:
        >>> Box(0.0)(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in (("low", self.low), ("high", self.high)) if value is not None}
        number(float("-inf"), **given)  # type: ignore[arg-type]
        if not given or (len(given) == 2 and not given["low"] <= given["high"]):
            raise ValueError(
                f"low={self.low}, high={self.high}: at least one bound is needed, low not above high"
            )

    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


@dataclass(frozen=True)
class Simplex:
    """`max(x - t, 0)` with the t for which it sums to `total`: the nearest point without negative entries.

    Args:
        total: the sum along `dim`, above 0.
        dim: the axis of which each row is projected; None for the whole tensor.

    Source: Held, Wolfe & Crowder 1974; Duchi et al. 2008, figure 1.

    Example:
        >>> Simplex()(torch.tensor([1.0, 0.5, -3.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """

    total: float = 1.0
    dim: int | None = None

    def __post_init__(self) -> None:
        number(above=True, total=self.total)
        if self.dim is not None and not isinstance(self.dim, int):
            raise ValueError(f"dim={self.dim!r}: allowed is a whole number, or None for the whole tensor")

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(1, -1) if self.dim is None else x.movedim(self.dim, -1)
        ordered = rows.sort(-1, descending=True).values
        count = torch.arange(1, rows.shape[-1] + 1, dtype=x.dtype, device=x.device)
        shifts = (ordered.cumsum(-1) - self.total) / count
        last = (ordered > shifts).sum(-1, keepdim=True) - 1
        found = (rows - shifts.gather(-1, last)).clamp_min(0)
        return found.reshape(x.shape) if self.dim is None else found.movedim(-1, self.dim)


@dataclass(frozen=True)
class Ball:
    """`x min(1, radius / ||x||)`: the nearest point of the ball around 0 of the whole tensor.

    Example:
        >>> Ball(radius=5.0)(torch.tensor([6.0, 8.0]))
        tensor([3., 4.])
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        number(above=True, radius=self.radius)

    def __call__(self, x: Tensor) -> Tensor:
        tiny = torch.finfo(x.dtype).tiny
        factor: Tensor = (self.radius / torch.linalg.vector_norm(x).clamp_min(tiny)).clamp_max(1.0)
        return x * factor

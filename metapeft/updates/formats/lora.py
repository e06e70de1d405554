"""LoRA: an update as a product of two thin factors (Hu et al. 2022, arXiv 2106.09685)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from metapeft.base.arguments import number, whole
from metapeft.updates.formats.format import (
    Factors,
    Format,
    Geometry,
    uniform_fan_in,
)


@dataclass(frozen=True)
class LoRA(Format):
    """`Delta = (alpha / rank) B A`, with `A (r, in/groups, *kernel)` and `B (out, r)`.

    On a convolution `A` is a convolution to `r` channels and `B` a pointwise one. `B` starts at 0, `A`
    uniform in `+-1/sqrt(fan_in)`, so the update starts at 0. Rank 0 is legal: the layer then has no update.

    Args:
        rank: the number of rank-1 terms `r`.
        alpha: numerator of the scale; None means `rank`, a scale of 1.

    Raises:
        ValueError: a rank that is no whole number of at least 0, an alpha that is not above 0.

    Example:
        >>> from metapeft.updates.formats.format import Geometry
        >>> start = LoRA(rank=4).start(Geometry((64, 32, 3, 3)), torch.Generator().manual_seed(0))
        >>> tuple(start["A"].shape), tuple(start["B"].shape), float(LoRA(4).delta(start).abs().max())
        ((1, 4, 32, 3, 3), (1, 64, 4), 0.0)
    """

    rank: int
    alpha: float | None = None

    def __post_init__(self) -> None:
        whole(0, rank=self.rank)
        if self.alpha is not None:
            number(above=True, alpha=self.alpha)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or self.rank == 0 else self.alpha / self.rank

    @property
    def terms(self) -> int:
        return self.rank

    def cut(self, limit: int) -> Self:
        """The rank cut to `limit`; the scale stays what it was."""
        if self.rank <= limit:
            return self
        return replace(self, rank=limit, alpha=None if self.alpha is None else self.scale * limit)

    def at_rank(self, terms: int) -> Self:
        return replace(self, rank=terms)

    def shapes(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        return {"A": (self.rank, geometry.inner, *geometry.kernel), "B": (geometry.out, self.rank)}

    def start(self, geometry: Geometry, generator: torch.Generator) -> dict[str, Tensor]:
        fan_in = geometry.inner * math.prod(geometry.kernel)
        shapes = self.shapes(geometry)
        zero = torch.zeros(1, *shapes["B"], dtype=torch.float32)
        return {"A": uniform_fan_in((1, *shapes["A"]), fan_in, generator), "B": zero}

    def delta(self, factors: Factors) -> Tensor:
        return self.scale * torch.einsum("tor,tri...->toi...", factors["B"], factors["A"])

    def down(self, factors: Factors) -> Tensor:
        return factors["A"]

    def up(self, factors: Factors, mixed: bool = False) -> Tensor:
        return factors["B"] if self.scale == 1.0 else factors["B"] * self.scale

    def select(self, factors: Factors, weights: Tensor) -> dict[str, Tensor]:
        down = factors["A"]
        return {**factors, "A": down * weights.reshape(1, -1, *[1] * (down.dim() - 2))}

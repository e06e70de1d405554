"""CP updates: LoRA with a seed between the factors (MetaLoRA, Wang & Zhao 2025, arXiv 2504.00460)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metapeft.updates.formats.format import Factors, Geometry
from metapeft.updates.formats.lora import LoRA


@dataclass(frozen=True)
class CP(LoRA):
    """`Delta_oi = (alpha / rank) sum_r B_or c_r A_ri`: CP, with the seed `c (r)` as its middle factor.

    `A` and `B` are LoRA's; the seed starts at 1, so the update starts as LoRA's and is 0. A seed `(T, r)`
    belongs to a task, a seed `(T, B, r)` to an input.

    Args:
        rank: the number of rank-1 terms.
        alpha: numerator of the scale; None means `rank`.

    Source: MetaLoRA, the CP form (output-first here: `A_P1 = A^T`, `B_P1 = B^T`).

    Example:
        >>> from metapeft.updates.formats.format import Geometry
        >>> sorted(CP(rank=2).start(Geometry((5, 3)), torch.Generator().manual_seed(0)))
        ['A', 'B', 'seed']
    """

    seed: ClassVar[str | None] = "seed"

    def shapes(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(geometry), "seed": (self.rank,)}

    def start(self, geometry: Geometry, generator: torch.Generator) -> dict[str, Tensor]:
        return {**super().start(geometry, generator), "seed": torch.ones(1, self.rank, dtype=torch.float32)}

    def delta(self, factors: Factors) -> Tensor:
        seeded = torch.einsum("tor,tr,tri...->toi...", factors["B"], factors["seed"], factors["A"])
        return self.scale * seeded

    def mix(self, hidden: Tensor, factors: Factors) -> Tensor:
        return hidden * factors["seed"].unsqueeze(2)

    def up(self, factors: Factors, mixed: bool = False) -> Tensor:
        scaled = super().up(factors)
        return scaled if mixed else scaled * factors["seed"].unsqueeze(-2)

    def select(self, factors: Factors, weights: Tensor) -> dict[str, Tensor]:
        return {**factors, "seed": factors["seed"] * weights}

"""CP updates: LoRA with a seed between the factors (MetaLoRA, Wang & Zhao 2025, arXiv 2504.00460)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from metapeft.base.arguments import flag
from metapeft.base.stored_settings import LATER
from metapeft.updates.formats import modulation
from metapeft.updates.formats.format import Factors, Geometry
from metapeft.updates.formats.lora import LoRA


@dataclass(frozen=True, repr=False)
class CP(LoRA):
    """`Delta_oi = (alpha / rank) sum_r B_or c_r A_ri`: CP, with the seed `c (r)` as its middle factor.

    `A` and `B` are LoRA's; the seed starts at 1, so the update starts as LoRA's and is 0. A seed `(T, r)`
    belongs to a task, a seed `(T, B, r)` to an input.

    Args:
        rank: the number of rank-1 terms.
        alpha: numerator of the scale; None means `rank`.
        shift, gate: whether the layer's output is shifted and gated beside, `y <- (1 + gate) y + shift`: factors
            `<p>.shift (out)` and `<p>.gate (out)`, 0 at the start, which a generator writes like the seed.
        dictionary: whether the rank may be above what the layer can have: a seed then chooses among more terms than
            are needed.

    Source: MetaLoRA, the CP form (output-first here: `A_P1 = A^T`, `B_P1 = B^T`).

    Example:
        >>> from metapeft.updates.formats.format import Geometry
        >>> sorted(CP(rank=2).start(Geometry((5, 3)), torch.Generator().manual_seed(0)))
        ['A', 'B', 'seed']
    """

    seed: ClassVar[str | None] = "seed"
    shift: bool = field(default=False, kw_only=True, metadata=LATER)
    gate: bool = field(default=False, kw_only=True, metadata=LATER)
    dictionary: bool = field(default=False, kw_only=True, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(shift=self.shift, gate=self.gate, dictionary=self.dictionary)

    @property
    def generated(self) -> tuple[str, ...]:
        return ("seed", *modulation.names(self))

    def unmodulated(self) -> Self:
        return replace(self, shift=False, gate=False)

    def cut(self, limit: int) -> Self:
        return self if self.dictionary else super().cut(limit)

    def shapes(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(geometry), "seed": (self.rank,), **modulation.shapes(self, geometry)}

    def start(self, geometry: Geometry, generator: torch.Generator) -> dict[str, Tensor]:
        own = {"seed": torch.ones(1, self.rank, dtype=torch.float32), **modulation.start(self, geometry)}
        return {**super().start(geometry, generator), **own}

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

    def keep(self, factors: Factors, which: Sequence[int]) -> dict[str, Tensor]:
        return {**factors, **super().keep(factors, which), "seed": factors["seed"][:, list(which)]}

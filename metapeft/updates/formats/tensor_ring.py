"""Tensor-ring updates: three cores closed to a ring (MetaLoRA, Wang & Zhao 2025, arXiv 2504.00460)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

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
class TensorRing(Format):
    """`Delta_oi = (alpha / R) sum_{r0 r1 r2} A[r0, i, r1] B[r1, o, r2] seed[r2, r0]`.

    `A (R0, in/groups, *kernel, R1)`, `B (R1, out, R2)`, `seed (R2, R0)`. `B` starts at 0 and the seed at the
    identity, so the update starts at 0. A seed `(T, R2, R0)` belongs to a task, `(T, B, R2, R0)` to an input.
    The rank of the update is at most `R^2`: at equal budgets a CP update has rank `R^2`.

    Args:
        rank: one `R` for all three bonds, or `(R0, R1, R2)`.
        alpha: numerator of the scale `alpha / R`, `R = R1`; None means `R`.

    Raises:
        ValueError: a bond that is no whole number of at least 0, an alpha that is not above 0.

    Source: MetaLoRA, the tensor-ring form.

    Example:
        >>> from metapeft.updates.formats.format import Geometry
        >>> start = TensorRing(rank=2).start(Geometry((5, 3, 3, 3)), torch.Generator().manual_seed(0))
        >>> {name: tuple(value.shape) for name, value in start.items()}
        {'A': (1, 2, 3, 3, 3, 2), 'B': (1, 2, 5, 2), 'seed': (1, 2, 2)}
    """

    rank: int | tuple[int, int, int]
    alpha: float | None = None
    seed: ClassVar[str | None] = "seed"

    def __post_init__(self) -> None:
        if isinstance(self.rank, tuple) and len(self.rank) != 3:
            raise ValueError(f"rank={self.rank!r}: a tensor ring has one rank, or three, (R0, R1, R2)")
        for bond in self.bonds:
            whole(0, rank=bond)
        if self.alpha is not None:
            number(above=True, alpha=self.alpha)

    @property
    def bonds(self) -> tuple[int, int, int]:
        return self.rank if isinstance(self.rank, tuple) else (self.rank, self.rank, self.rank)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or self.bonds[1] == 0 else self.alpha / self.bonds[1]

    @property
    def terms(self) -> int:
        return self.bonds[1]

    def cut(self, limit: int) -> Self:
        """Each bond cut to `limit`; the scale stays what it was."""
        if max(self.bonds) <= limit:
            return self
        first, second, third = (min(bond, limit) for bond in self.bonds)
        rank = first if first == second == third else (first, second, third)
        return replace(self, rank=rank, alpha=None if self.alpha is None else self.scale * second)

    def at_rank(self, terms: int) -> Self:
        """Terms are the bond `r1`; the other two stay."""
        return replace(self, rank=(self.bonds[0], terms, self.bonds[2]))

    def shapes(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        r0, r1, r2 = self.bonds
        return {
            "A": (r0, geometry.inner, *geometry.kernel, r1),
            "B": (r1, geometry.out, r2),
            "seed": (r2, r0),
        }

    def start(self, geometry: Geometry, generator: torch.Generator) -> dict[str, Tensor]:
        r0, _, r2 = self.bonds
        fan_in = geometry.inner * math.prod(geometry.kernel)
        shapes = self.shapes(geometry)
        return {
            "A": uniform_fan_in((1, *shapes["A"]), fan_in, generator),
            "B": torch.zeros(1, *shapes["B"], dtype=torch.float32),
            "seed": torch.eye(r2, r0, dtype=torch.float32).unsqueeze(0),
        }

    def delta(self, factors: Factors) -> Tensor:
        ring = torch.einsum("tai...b,tboc,tca->toi...", factors["A"], factors["B"], factors["seed"])
        return self.scale * ring

    def down(self, factors: Factors) -> Tensor:
        """`A` as a map to `R0 R1` channels, r0 outermost: `(T, R0*R1, in, *kernel)`."""
        return factors["A"].movedim(-1, 2).flatten(1, 2)

    def mix(self, hidden: Tensor, factors: Factors) -> Tensor:
        """`Z[r1, r2] = sum_{r0} H[r0, r1] seed[r2, r0]` for `hidden` `(T, B, M, R0*R1)`."""
        r0, r1, _ = self.bonds
        ring = torch.unflatten(hidden, -1, (r0, r1))
        return torch.einsum("tbmac,tbda->tbmcd", ring, factors["seed"]).flatten(-2)

    def up(self, factors: Factors, mixed: bool = False) -> Tensor:
        if mixed:
            return factors["B"].transpose(1, 2).flatten(2) * self.scale
        folded = torch.einsum("tboc,tca->toab", factors["B"], factors["seed"]).flatten(2)
        return folded if self.scale == 1.0 else folded * self.scale

    def select(self, factors: Factors, weights: Tensor) -> dict[str, Tensor]:
        return {**factors, "A": factors["A"] * weights}

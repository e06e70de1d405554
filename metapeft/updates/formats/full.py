"""Full updates: `Delta` itself is the factor (MAML, Finn et al. 2017, arXiv 1703.03400)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metapeft.updates.formats.format import Factors, Format, Geometry


@dataclass(frozen=True)
class Full(Format):
    """`Delta` is one tensor of the parameter's own shape, `<p>.delta`, which starts at 0.

    It acts on every parameter, biases and the affine parameters of normalisation layers included.

    Example:
        >>> from metapeft.updates.formats.format import Geometry
        >>> {name: tuple(value.shape) for name, value in Full().start(Geometry((5, 3)), None).items()}
        {'delta': (1, 5, 3)}
    """

    dense: ClassVar[bool] = True

    def fits(self, geometry: Geometry) -> bool:
        return True

    def shapes(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        return {"delta": geometry.shape}

    def start(self, geometry: Geometry, generator: torch.Generator | None) -> dict[str, Tensor]:
        return {"delta": torch.zeros(1, *geometry.shape, dtype=torch.float32)}

    def delta(self, factors: Factors) -> Tensor:
        return factors["delta"]

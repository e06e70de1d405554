"""What an update format has to offer: shapes, a start, and the pieces of `W0 + Delta`.

A format knows nothing of layers. It sees a parameter as a (possibly convolutional) matrix `out x in x
*kernel` and describes `Delta` by a few tensors, its factors, each with a leading task axis `(T, ...)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Geometry:
    """How a stored parameter reads as a matrix with a kernel.

    Args:
        shape: shape of the parameter as its layer stores it.
        transposed: True where the layer stores `(in, out)` (`Embedding`, GPT-2's `Conv1D`).

    Example:
        >>> Geometry((64, 32, 3, 3)).limit, Geometry((1000, 16), transposed=True).out
        (64, 16)
    """

    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def out(self) -> int:
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def inner(self) -> int:
        """Columns of the matrix: `in / groups`; the number of rows of an `Embedding`."""
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def limit(self) -> int:
        """The largest rank that an update can have: `min(out, in / groups * prod(kernel))`."""
        return min(self.out, self.inner * math.prod(self.kernel))

    def stored(self, delta: Tensor) -> Tensor:
        """Turn `(n, out, in, *kernel)` into the layer's own orientation, `(n, *shape)`."""
        return delta.transpose(1, 2) if self.transposed else delta


class Format:
    """Base of the update formats; a frozen dataclass that holds only settings.

    A low-rank format gives `down` and `up`, so that `Delta = up @ down` without ever being built;
    a dense one gives only `delta`. Everything takes factors under their local names, `(T, ...)`,
    where a leading 1 broadcasts.
    """

    dense: ClassVar[bool] = False
    #: local name of the factor that a generator writes, None where the format has none
    seed: ClassVar[str | None] = None

    def shapes(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        """Local names of the factors and their shapes, without the task axis."""
        raise NotImplementedError(f"{type(self).__name__} gives no shapes")

    def fits(self, geometry: Geometry) -> bool:
        """Whether the format can act on a parameter of this shape at all."""
        return len(geometry.shape) >= 2

    def cut(self, limit: int) -> Self:
        """This format with its rank cut to `limit`, itself where the rank is within."""
        return self

    def at_rank(self, terms: int) -> Self:
        """This format with another number of terms and the same `alpha`, for retraining at a chosen rank."""
        raise ValueError(f"{self} has no terms to choose a number of: use LoRA, CP or TensorRing")

    def start(self, geometry: Geometry, generator: torch.Generator) -> dict[str, Tensor]:
        """Factors `(1, ...)` of a zero update, as float32 on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} gives no start")

    def delta(self, factors: Factors) -> Tensor:
        """The update itself by its definition, `(T, out, in, *kernel)` (dense formats: as stored)."""
        raise NotImplementedError(f"{type(self).__name__} gives no delta")

    def down(self, factors: Factors) -> Tensor:
        """Weights of the first, spatial map, `(T, channels, in, *kernel)`."""
        raise NotImplementedError(f"{type(self).__name__} is not low-rank")

    def mix(self, hidden: Tensor, factors: Factors) -> Tensor:
        """Apply a seed per input to `hidden` `(T, B, M, channels)`."""
        raise NotImplementedError(f"{type(self).__name__} has no seed")

    def up(self, factors: Factors, mixed: bool = False) -> Tensor:
        """Weights of the second, pointwise map `(T, out, channels)`, scaled, with the seed unless `mixed`."""
        raise NotImplementedError(f"{type(self).__name__} is not low-rank")

    @property
    def terms(self) -> int:
        """Number of terms that selection variables weigh; 0 where nothing can be selected."""
        return 0

    def select(self, factors: Factors, weights: Tensor) -> dict[str, Tensor]:
        """The factors with term `j` of the update multiplied by `weights[j]`."""
        raise ValueError(f"{self} has no terms to select from: use LoRA, CP or TensorRing")

    def to_lora(self, factors: Factors) -> dict[str, Tensor]:
        """LoRA factors `A (T, r, in, *kernel)`, `B (T, out, r)` with the same update at scale 1."""
        return {"A": self.down(factors), "B": self.up(factors)}


def uniform_fan_in(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Entries uniform in `+-1/sqrt(fan_in)`: torch's own start of linear and convolution layers."""
    bound = 1.0 / math.sqrt(max(fan_in, 1))
    return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)


def per_row(factors: Factors, rows: int, seed: str) -> dict[str, Tensor]:
    """Give every one of the `T*B` rows of a batch its own factors, from a seed `(T, B, ...)`.

    Returns factors whose leading axis is `T*B`; those without a batch axis are repeated.
    """
    tasks, items = factors[seed].shape[:2]
    flat = {}
    for name, value in factors.items():
        if name == seed:
            flat[name] = value.flatten(0, 1)
        else:
            repeated = value.expand(tasks, *value.shape[1:]).unsqueeze(1)
            flat[name] = repeated.expand(tasks, items, *value.shape[1:]).flatten(0, 1)
    if tasks * items != rows:
        raise ValueError(
            f"a seed per input has shape ({tasks}, {items}, ...) but the batch has {rows} inputs"
        )
    return flat

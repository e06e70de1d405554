"""The rows of MetaLoRA's evaluation: as many trained numbers for each, whatever generates its seeds counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import metapeft as mp
from metapeft.generators.generator import Generator, Shapes, Tensors
from metapeft.generators.mapping_net import MappingNet
from metapeft.generators.support import Support
from metapeft.updates.formats.format import Format, Geometry

HIDDEN, BRANCHES, RANK = 32, 3, 16
SLACK = 0.02  # by how much of the budget a row may stay below it


@dataclass(frozen=True)
class Gates(MappingNet):
    """MappingNet that writes one number a branch: the terms of a branch share it.

    `CP(M r)` with it is Multi-LoRA, `sum_m g_m(x) B_m A_m`, each branch of rank r; with gates of 1 it is LoRA of rank
    M r. Source: the Multi-LoRA row of MetaLoRA (Wang & Zhao 2025), its scales read from the input.

    Args:
        branches: M, divides the rank of every layer.
    """

    branches: int = BRANCHES

    def start(self, seeds: Shapes, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        return super().start(self._gates(seeds), size, generator)

    def __call__(self, parameters: Tensors, seeds: Shapes, support: Support) -> dict[str, Tensor]:
        gates = super().__call__(parameters, self._gates(seeds), support)
        return {
            name: value.repeat_interleave(seeds[name][0] // self.branches, -1)
            for name, value in gates.items()
        }

    def _gates(self, seeds: Shapes) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(seeds, (self.branches,))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        about: one line. rung: number -> format, each with more parameters than the one before; None for no update.
        generator: None for none. constant: the row that is this one without a generator.
    """

    about: str
    rung: Callable[[int], Format] | None = None
    generator: Callable[[], Generator | None] = lambda: None
    constant: str = ""


def ring(number: int) -> Format:
    """Tensor rings, one bond larger from each to the next.

    Example:
        >>> [ring(n).bonds for n in range(4)]
        [(1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)]
    """
    least, more = divmod(number, 3)
    return mp.TensorRing((1 + least, 1 + least + (more == 2), 1 + least + (more > 0)))


def net() -> Generator:
    """MetaLoRA's: the seed of each input from its own feature under W0."""
    return MappingNet(HIDDEN, per="input")


ROWS = {
    "original": Row("the pretrained network as it is"),
    "lora": Row("one LoRA for all inputs", mp.LoRA),
    "multi-lora": Row(
        f"{BRANCHES} branches, gated by the input", lambda n: mp.CP(BRANCHES * n), lambda: Gates(HIDDEN, per="input"),
        "cp-constant",
    ),
    "cp": Row("MetaLoRA in CP form, a seed for each input", mp.CP, net, "cp-constant"),
    "cp-constant": Row("CP with one trained seed for all inputs", mp.CP),
    "tr": Row("MetaLoRA in tensor-ring form, a seed for each input", ring, net, "tr-constant"),
    "tr-constant": Row("tensor ring with one trained seed for all inputs", ring),
}  # fmt: skip


def numbers(format: Format, geometry: Geometry) -> int:
    """How many a layer's update has."""
    return sum(math.prod(shape) for shape in format.shapes(geometry).values())


def budget(layers: Mapping[str, Geometry]) -> int:
    """What LoRA of rank 16 has on these layers."""
    return sum(numbers(mp.LoRA(RANK), geometry) for geometry in layers.values())


def fitted(row: Row, layers: Mapping[str, Geometry], features: int) -> dict[str, Format]:
    """Formats of a row: the largest rank that the budget allows on all layers, the rest on single ones, in order.

    Args:
        layers: parameter -> its shape. features: what the generator reads.

    Raises:
        ValueError: a row whose smallest rank is above the budget, or that stays more than 2 % below it.
    """
    if row.rung is None:
        return {}
    limit, rungs = budget(layers), dict.fromkeys(layers, 0)
    formats = {name: row.rung(0) for name in layers}
    if total(row, formats, layers, features) > limit:
        raise ValueError(f"{row.about}: above the budget of {limit} even at its smallest rank")

    def larger() -> dict[str, Format] | None:
        """One rung more on the lowest layer that can have it."""
        for name in sorted(layers, key=lambda name: rungs[name]):
            tried = {**formats, name: row.rung(rungs[name] + 1)}  # type: ignore[misc]
            if len(tried) < len(layers) or total(row, tried, layers, features) <= limit:
                rungs[name] += 1
                return tried
        return None

    while (found := larger()) is not None:
        formats = found
    reached = total(row, formats, layers, features)
    if reached < (1 - SLACK) * limit:
        raise ValueError(f"{row.about}: {reached} of {limit} is more than {SLACK:.0%} below the budget")
    return formats


def total(row: Row, formats: Mapping[str, Format], layers: Mapping[str, Geometry], features: int) -> int:
    """Trained numbers of a row: factors and what generates seeds."""
    factors = sum(numbers(formats[name], geometry) for name, geometry in layers.items())
    generator = row.generator()
    if generator is None:
        return factors
    seeds = {f"{name}.seed": formats[name].shapes(geometry)["seed"] for name, geometry in layers.items()}
    own = generator.start(seeds, features, torch.Generator().manual_seed(0))
    return factors + sum(value.numel() for value in own.values())

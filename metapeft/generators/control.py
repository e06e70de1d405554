"""Controls for generators: what is left of their effect when the features are another task's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.generators.generator import Generator, Shapes, Tensors


@dataclass(frozen=True)
class OtherTask(Generator):
    """The given generator, fed the support set of the task before it: `seed_t = start + net(f_{t-1})`, cyclic.

    Evaluated beside the generator itself it shows whether the generated seeds say anything about their task.

    Args:
        generator: the one that is controlled.

    Raises:
        ValueError: when called on a batch of one task, which has no other.

    Example:
        >>> from metapeft.generators import MappingNet
        >>> OtherTask(MappingNet(hidden=8)).per
        'task'
    """

    generator: Generator

    def __post_init__(self) -> None:
        for name in ("per", "features", "size"):
            object.__setattr__(self, name, getattr(self.generator, name))

    def start(self, seeds: Shapes, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.generator.start(seeds, size, generator)

    def __call__(
        self, parameters: Tensors, seeds: Shapes, features: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        if features.shape[0] < 2:
            raise ValueError(
                "the batch has one task, there is no other to take features from: tasks_per_batch >= 2"
            )
        rolled = None if mask is None else mask.roll(1, 0)
        return self.generator(parameters, seeds, features.roll(1, 0), rolled)

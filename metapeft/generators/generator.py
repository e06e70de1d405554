"""What a generator has to offer: parameters, and from features what is added to each layer's seed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


class Generator:
    """Base of the generators; a frozen dataclass that holds only settings.

    Attributes:
        per: `"task"` (one seed a task, from the support set) or `"input"` (one seed an input, from itself).
        features: a frozen module that maps inputs to features `(rows, F)`; None for the backbone's own body.
        size: the number of features `F`, where `features` is given or the backbone has no classifier.

    Example:
        >>> class Constant(Generator):
        ...     per, features, size = "task", None, None
        ...     def start(self, seeds, size, generator):
        ...         return {name: torch.zeros(shape) for name, shape in seeds.items()}
        ...     def __call__(self, parameters, seeds, features, mask):
        ...         return {name: parameters[name].expand(len(features), *shape) for name, shape in seeds.items()}
        >>> Constant()({"c.seed": torch.zeros(2)}, {"c.seed": (2,)}, torch.ones(4, 5, 8), None)["c.seed"].shape
        torch.Size([4, 2])
    """

    per: Literal["task", "input"]
    features: nn.Module | None
    size: int | None

    def start(self, seeds: Shapes, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters, name -> tensor, for seeds of the given names and shapes and `size` features."""
        raise NotImplementedError(f"{type(self).__name__} gives no start")

    def __call__(
        self, parameters: Tensors, seeds: Shapes, features: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """What is added to each seed's start: name -> `(T, *shape)`, per input `(T, B, *shape)`.

        Args:
            features: `(T, S, F)` of the support set; per input of the inputs themselves, `(T, B, F)`.
            mask: `(T, S)`, True for items that count.
        """
        raise NotImplementedError(f"{type(self).__name__} generates nothing")


def with_own_features(generator: Generator | None, like: Tensor) -> Generator | None:
    """The generator with a copy of its feature module that nothing changes: in eval mode, frozen, in `like`'s type.

    Example:
        >>> class Own(Generator):
        ...     features = nn.Dropout()
        >>> with_own_features(Own(), torch.zeros(1)).features.training, Own.features.training
        (False, True)
    """
    if generator is None or not isinstance(generator.features, nn.Module):
        return generator
    own = copy.copy(generator)
    features = copy.deepcopy(generator.features).to(like.device, like.dtype).eval().requires_grad_(False)
    object.__setattr__(own, "features", features)
    return own

"""What a generator has to offer: parameters, and from a support set what is added to each generated factor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metapeft.generators.support import Support

Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Features = nn.Module | Literal["inputs"] | None


class Generator:
    """Base of the generators; a frozen dataclass that holds only settings.

    Attributes:
        per: `"task"` (one seed a task, from the support set) or `"input"` (one seed an input, from itself).
        reads: what of the support set it needs: `{"features"}`, or `{"features", "labels"}`.
        features: a module that maps inputs to features `(rows, F)`, `"inputs"` for the flattened inputs themselves,
            None for the backbone's own body with its current weights.
        train_features: whether that module is trained with the generator; else it is frozen.
        size: the number of features `F`, where `features` is given or the backbone has no classifier.

    Example:
        >>> class Constant(Generator):
        ...     def start(self, seeds, size, generator):
        ...         return {name: torch.zeros(shape) for name, shape in seeds.items()}
        ...     def __call__(self, parameters, seeds, support):
        ...         tasks = len(support.features)
        ...         return {name: parameters[name].expand(tasks, *shape) for name, shape in seeds.items()}
        >>> Constant()({"c.seed": torch.zeros(2)}, {"c.seed": (2,)}, Support(torch.ones(4, 5, 8)))["c.seed"].shape
        torch.Size([4, 2])
    """

    reads: ClassVar[frozenset[str]] = frozenset({"features"})
    per: Literal["task", "input"] = "task"
    features: Features = None
    train_features: bool = False
    size: int | None = None

    def start(self, seeds: Shapes, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters, name -> tensor, for seeds of the given names and shapes and `size` features."""
        raise NotImplementedError(f"{type(self).__name__} gives no start")

    def __call__(self, parameters: Tensors, seeds: Shapes, support: Support) -> dict[str, Tensor]:
        """What is added to the start of each seed, shift and gate: name -> `(T, *shape)`, per input `(T, B, *shape)`.

        Args:
            parameters: as `start` names them. seeds: names and shapes of what is to be written.
            support: features, labels and mask of the support set; per input features of the inputs themselves.
        """
        raise NotImplementedError(f"{type(self).__name__} generates nothing")


def check_generator(generator: Generator) -> None:
    """Raise ValueError for a generator that no learner can call: of an earlier signature, or one that contradicts
    itself.

    Example:
        >>> class Old(Generator):
        ...     def __call__(self, parameters, seeds, features, mask): ...
        >>> check_generator(Old())
        Traceback (most recent call last):
        ValueError: Old.__call__(parameters, seeds, features, mask) is the signature of metapeft 0.2: write \
__call__(parameters, seeds, support) and read support.features, support.mask and, with labels, support.y
    """
    kind = type(generator)
    named = [name for name in inspect.signature(kind.__call__).parameters if name != "self"]
    if len(named) > 3 and "support" not in named:
        raise ValueError(
            f"{kind.__name__}.__call__({', '.join(named)}) is the signature of metapeft 0.2: write "
            "__call__(parameters, seeds, support) and read support.features, support.mask and, with labels, support.y"
        )
    if generator.per not in ("task", "input"):
        raise ValueError(f"per={generator.per!r}: allowed are 'task' and 'input'")
    if generator.per == "input" and "labels" in generator.reads:
        raise ValueError(
            f"{kind.__name__} reads the labels of a support set, and an input of its own has none: per='task', or "
            "MappingNet(per='input')"
        )
    if isinstance(generator.features, str) and generator.features != "inputs":
        raise ValueError(
            f"features={generator.features!r}: allowed are a module, 'inputs' for the inputs themselves, and None for "
            "the backbone's body"
        )
    if generator.features is not None and generator.size is None:
        what = "the inputs themselves" if generator.features == "inputs" else "a module of its own"
        raise ValueError(f"features= is {what}: say how many features it gives, size=")
    if generator.train_features and not isinstance(generator.features, nn.Module):
        raise ValueError(
            f"train_features=True has no effect with features={generator.features!r}: give a module to train"
        )

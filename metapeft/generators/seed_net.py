"""A net with one hidden layer from a vector that stands for the task to all that is generated."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.arguments import number, whole
from metapeft.generators.generator import Generator, Shapes, Tensors, check_generator
from metapeft.generators.support import Support


class SeedNet(Generator):
    """Base of the encoders: `seed_l = start_l + b(V_l relu(W z + b) + c_l)`, `z` what a subclass makes of the
    support set.

    `b(x) = bound tanh(x / bound)`, or x itself without a bound. `V_l` and `c_l` start at 0, so training starts with
    the constant seed. A subclass gives `width(size)`, the length of z for `size` features, `encoded(parameters,
    support)`, z `(T, Z)`, and `encoder(size, generator)` if that has parameters.

    Attributes:
        hidden: width of the hidden layer. bound: the largest change of an entry; None for none.

    Raises:
        ValueError: a hidden width below 1, a bound that is not above 0, and what `check_generator` refuses.

    Example:
        >>> from metapeft.generators import MappingNet
        >>> issubclass(MappingNet, SeedNet)
        True
    """

    hidden: int
    bound: float | None = None

    def __post_init__(self) -> None:
        whole(hidden=self.hidden)
        if self.bound is not None:
            number(above=True, bound=self.bound)
        check_generator(self)

    def width(self, size: int) -> int:
        """The length of z."""
        return size

    def encoder(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters of `encoded`."""
        return {}

    def encoded(self, parameters: Tensors, support: Support) -> Tensor:
        """z, `(T, Z)`; per input `(T, B, Z)`."""
        raise NotImplementedError(f"{type(self).__name__} encodes nothing")

    def start(self, seeds: Shapes, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        parameters = dense("hidden", self.width(size), self.hidden, generator)
        for name, shape in seeds.items():
            parameters[f"{name}.weight"] = torch.zeros(math.prod(shape), self.hidden, dtype=torch.float32)
            parameters[f"{name}.bias"] = torch.zeros(math.prod(shape), dtype=torch.float32)
        return {**parameters, **self.encoder(size, generator)}

    def __call__(self, parameters: Tensors, seeds: Shapes, support: Support) -> dict[str, Tensor]:
        hidden = F.relu(applied("hidden", parameters, self.encoded(parameters, support)))
        found = {}
        for name, shape in seeds.items():
            added = torch.unflatten(applied(name, parameters, hidden), -1, shape)
            found[name] = added if self.bound is None else self.bound * torch.tanh(added / self.bound)
        return found


def dense(name: str, inner: int, out: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weight and bias of a layer before a ReLU, as He et al. 2015 start it."""
    bound = math.sqrt(6.0 / max(inner, 1))
    weight = torch.empty(out, inner, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(out, dtype=torch.float32)}


def applied(name: str, parameters: Tensors, x: Tensor) -> Tensor:
    """The layer of that name."""
    return F.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def normed(x: Tensor) -> Tensor:
    """Layer norm over the last axis, without parameters."""
    return F.layer_norm(x, x.shape[-1:])

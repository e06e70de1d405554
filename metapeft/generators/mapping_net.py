"""The mapping net of MetaLoRA: from features of the task to the seed of every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.base.arguments import whole
from metapeft.generators.generator import Generator, Shapes, Tensors


@dataclass(frozen=True)
class MappingNet(Generator):
    """`seed_l = start_l + V_l relu(W z + b) + c_l`, with `z` the normalised mean of the support set's features.

    `z = layer_norm(mean_s f(x_s))`, without parameters of its own; per input `z = layer_norm(f(x))`. `V_l` and `c_l`
    start at 0, so training starts as plain LoRA.

    Args:
        hidden: width of the hidden layer.
        per: `"task"` or `"input"`.
        features: a frozen module that gives the features; None for the backbone's body with its current weights.
        size: the number of features, where `features` is given or the backbone has no classifier.

    Raises:
        ValueError: a hidden width below 1, another `per`.

    Source: MetaLoRA (Wang & Zhao 2025, arXiv 2504.00460): feature extractor, mapping net, integration.

    Example:
        >>> net, seeds = MappingNet(hidden=8), {"conv1.weight.seed": (4,)}
        >>> parameters = net.start(seeds, 16, torch.Generator().manual_seed(0))
        >>> net(parameters, seeds, torch.ones(2, 5, 16), None)["conv1.weight.seed"].shape  # 2 tasks of 5 items
        torch.Size([2, 4])
    """

    hidden: int = 64
    per: Literal["task", "input"] = "task"
    features: nn.Module | None = field(default=None, compare=False)
    size: int | None = None

    def __post_init__(self) -> None:
        whole(hidden=self.hidden)
        if self.per not in ("task", "input"):
            raise ValueError(f"per={self.per!r}: allowed are 'task' and 'input'")
        if self.features is not None and self.size is None:
            raise ValueError("features= is a module of its own: say how many features it gives, size=")

    def start(self, seeds: Shapes, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        bound = math.sqrt(6.0 / size)  # He et al. 2015, for the ReLU that follows
        weight = torch.empty(self.hidden, size, dtype=torch.float32).uniform_(
            -bound, bound, generator=generator
        )
        parameters = {"hidden.weight": weight, "hidden.bias": torch.zeros(self.hidden, dtype=torch.float32)}
        for name, shape in seeds.items():
            parameters[f"{name}.weight"] = torch.zeros(math.prod(shape), self.hidden, dtype=torch.float32)
            parameters[f"{name}.bias"] = torch.zeros(math.prod(shape), dtype=torch.float32)
        return parameters

    def __call__(
        self, parameters: Tensors, seeds: Shapes, features: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        if self.per == "task":
            if mask is None:
                features = features.mean(1)
            else:
                weight = mask.unsqueeze(-1).to(features)
                features = (features * weight).sum(1) / weight.sum(1)
        z = F.layer_norm(features, features.shape[-1:])
        hidden = F.relu(F.linear(z, parameters["hidden.weight"], parameters["hidden.bias"]))
        found = {}
        for name, shape in seeds.items():
            added = F.linear(hidden, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
            found[name] = torch.unflatten(added, -1, shape)
        return found

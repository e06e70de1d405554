"""The mapping net of MetaLoRA: from features of the task to the seed of every layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from metapeft.base.stored_settings import LATER
from metapeft.generators.generator import Features, Tensors
from metapeft.generators.seed_net import SeedNet, normed
from metapeft.generators.support import Support


@dataclass(frozen=True)
class MappingNet(SeedNet):
    """`seed_l = start_l + V_l relu(W z + b) + c_l`, with `z` the normalised mean of the support set's features.

    `z = layer_norm(mean_s f(x_s))`, without parameters of its own; per input `z = layer_norm(f(x))`. It reads no
    labels: where two kinds of task have the same mean, it cannot tell them apart (`ClassEncoder` can).

    Args:
        hidden: width of the hidden layer.
        per: `"task"` or `"input"`.
        features: a module that gives the features, `"inputs"` for the inputs themselves; None for the backbone's body
            with its current weights.
        size: the number of features, where `features` is given or the backbone has no classifier.
        bound: the largest change of an entry of a seed; None for none.
        train_features: whether that module is trained too.

    Raises:
        ValueError: a hidden width below 1, another `per`, features without size.

    Source: MetaLoRA (Wang & Zhao 2025, arXiv 2504.00460): feature extractor, mapping net, integration.

    Example:
        >>> import torch
        >>> net, seeds = MappingNet(hidden=8), {"conv1.weight.seed": (4,)}
        >>> parameters = net.start(seeds, 16, torch.Generator().manual_seed(0))
        >>> net(parameters, seeds, Support(torch.ones(2, 5, 16)))["conv1.weight.seed"].shape  # 2 tasks of 5 items
        torch.Size([2, 4])
    """

    hidden: int = 64
    per: Literal["task", "input"] = "task"
    features: Features = field(default=None, compare=False)
    size: int | None = None
    bound: float | None = field(default=None, metadata=LATER)
    train_features: bool = field(default=False, metadata=LATER)

    def encoded(self, parameters: Tensors, support: Support) -> Tensor:
        return normed(support.mean if self.per == "task" else support.features)

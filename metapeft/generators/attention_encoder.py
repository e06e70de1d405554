"""From the support set to the seeds by attention: learned queries choose which items speak for the task."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.episodes.class_rows import class_means
from metapeft.generators.generator import Features, Tensors
from metapeft.generators.seed_net import SeedNet, applied, dense, normed
from metapeft.generators.support import Support


@dataclass(frozen=True)
class AttentionEncoder(SeedNet):
    """`seed_l = start_l + V_l relu(W z + b) + c_l`, `z` what `queries` learned queries read of the items.

    An item's token is `k_s = relu(P [norm(f_s), norm(m_y(s)), norm((f_s - m_y(s))^2)] + p)`, m the means of the
    classes, so that it knows how it lies in its class; query q reads `sum_s softmax_s(q . k_s / sqrt(hidden)) k_s`.
    The order of the items and the numbers of the classes play no part.

    Args:
        hidden: width of the tokens and of the hidden layer.
        queries: how many there are.
        features: a module that gives the features, `"inputs"`, or None for the backbone's body.
        size: the number of features, where `features` is given or the backbone has no classifier.
        bound: the largest change of an entry of a seed; None for none.
        train_features: whether that module is trained too.

    Raises:
        ValueError: sizes below 1; from a call, a support set without class labels.

    Source: attention with learned queries as pooling (Lee et al. 2019, Set Transformer, arXiv 1810.00825, section 3.2).

    Example:
        >>> net, seeds = AttentionEncoder(hidden=8), {"conv1.weight.seed": (4,)}
        >>> parameters = net.start(seeds, 16, torch.Generator().manual_seed(0))
        >>> y = torch.tensor([[0, 0, 1, 1]]).expand(2, -1)
        >>> net(parameters, seeds, Support(torch.randn(2, 4, 16), y, ways=2))["conv1.weight.seed"].shape
        torch.Size([2, 4])
    """

    reads: ClassVar[frozenset[str]] = frozenset({"features", "labels"})
    hidden: int = 64
    queries: int = 4
    features: Features = field(default=None, compare=False)
    size: int | None = None
    bound: float | None = None
    train_features: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(queries=self.queries)

    def width(self, size: int) -> int:
        return self.hidden * self.queries

    def encoder(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        queries = torch.empty(self.queries, self.hidden, dtype=torch.float32).normal_(generator=generator)
        return {**dense("token", 3 * size, self.hidden, generator), "queries": queries}

    def encoded(self, parameters: Tensors, support: Support) -> Tensor:
        rows, features = support.rows, support.features
        own = torch.bmm(rows, class_means(features, rows))  # the mean of each item's class
        shown = torch.cat([normed(features), normed(own), normed((features - own).square())], -1)
        tokens = F.relu(applied("token", parameters, shown))
        scores = torch.einsum("tsh,qh->tqs", tokens, parameters["queries"]) / math.sqrt(self.hidden)
        if support.mask is not None:
            scores = scores.masked_fill(~support.mask.unsqueeze(1), -torch.inf)
        return torch.bmm(scores.softmax(-1), tokens).flatten(1)

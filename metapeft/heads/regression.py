"""Heads by regressions of `mp.inner`: logistic, and ridge regression that weighs classes equally."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.arguments import number
from metapeft.heads.closed_form import Ridge
from metapeft.heads.head import Head, Tensors, absent_bias, one_hot
from metapeft.inner.closed_form import ridge
from metapeft.inner.multiclass import softmax_regression


@dataclass(frozen=True)
class WeightedRidge(Ridge):
    """Ridge regression in which every class counts the same, however many items it has.

    `W = scale * argmin_W sum_i s_i ||x_i W - y_i||^2 + penalty ||W||^2`, `s_i = S / (N count(y_i))`: weights
    that add up to the number of items S, and are 1 where classes have equally many. Arguments and outer group
    as in `Ridge`. Source: Bertinetto et al. 2019 (R2-D2), eq. 6, with weights.

    Example:
        >>> x, y = torch.tensor([[[1.0], [1.0], [-1.0]]]), torch.tensor([[0, 0, 1]])
        >>> head = WeightedRidge(penalty=1e-6)
        >>> (head.start(x, y, ways=2)["head.weight"] * 100).round().flatten()  # both classes weigh 1.5
        tensor([ 50., -50.])
    """

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        own = self.learned() if learned is None else learned
        values = {name: value.to(features) for name, value in own.items()}
        rows = one_hot(y, ways, mask, features)
        count = rows.sum(1)
        present = (count > 0).sum(1, keepdim=True)
        each = count.sum(1, keepdim=True) / (present * count.clamp_min(1.0))
        weights = torch.bmm(rows, each.unsqueeze(-1)).squeeze(-1)
        weight = ridge(features, rows, values["log_penalty"].exp(), weights) * values["log_scale"].exp()
        return {"head.weight": weight.mT, "head.bias": absent_bias(rows) + values["bias"]}


@dataclass(frozen=True)
class Logistic(Head):
    """Logistic regression: `argmin sum_i CE(x_i W + b, y_i) + penalty/2 (||W||^2 + b^2)`, found by Newton.

    The penalty is learned as a logarithm: the outer group `head`. Gradients are implicit, second ones too.
    Source: Lee et al. 2019 (MetaOptNet, arXiv 1904.03758), section 3.2: convex heads, implicit gradients.

    Args:
        penalty: where the learned value starts.

    Raises:
        ValueError: a penalty that is not above 0.

    Example:
        >>> x, y = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[0, 1]])
        >>> head = Logistic(penalty=0.1)
        >>> head.logits(x, head.start(x, y, ways=2)).argmax(-1)
        tensor([[0, 1]])
    """

    penalty: float = 1.0

    def __post_init__(self) -> None:
        number(above=True, penalty=self.penalty)

    def learned(self) -> dict[str, Tensor]:
        return {"log_penalty": torch.tensor(math.log(self.penalty))}

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        own = self.learned() if learned is None else learned
        penalty = own["log_penalty"].to(features).exp()
        rows = one_hot(y, ways, mask, features)
        absent = absent_bias(rows)
        x = F.pad(features, (0, 1), value=1.0)  # the last column is the bias; masked rows are zero in `rows`
        found = softmax_regression(x, rows, penalty, offset=absent.unsqueeze(1))
        return {"head.weight": found[:, :-1].mT, "head.bias": found[:, -1] + absent}

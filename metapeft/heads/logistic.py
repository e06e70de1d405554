"""Logistic regression as a head, found by Newton."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.arguments import number
from metapeft.heads.head import Tensors, absent_bias, one_hot
from metapeft.heads.normalized import OnFeatures
from metapeft.inner.multiclass import softmax_regression


@dataclass(frozen=True)
class Logistic(OnFeatures):
    """Logistic regression: `argmin sum_i CE(x_i W + b, y_i) + penalty/2 (||W||^2 + b^2)`, found by Newton.

    The penalty is learned as a logarithm: the outer group `head`. Gradients are implicit, second ones too.
    Source: Lee et al. 2019 (MetaOptNet, arXiv 1904.03758), section 3.2: convex heads, implicit gradients.

    Args:
        penalty: where the learned value starts.
        normalize: see `OnFeatures`.

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
        super().__post_init__()
        number(above=True, penalty=self.penalty)

    def learned(self) -> dict[str, Tensor]:
        return {"log_penalty": torch.tensor(math.log(self.penalty), dtype=torch.float32)}

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        own = self.own(learned)
        features = self.normalized(features, own.get("center"))
        penalty = own["log_penalty"].to(features).exp()
        rows = one_hot(y, ways, mask, features)
        absent = absent_bias(rows)
        x = F.pad(features, (0, 1), value=1.0)  # the last column is the bias; masked rows are zero in `rows`
        found = softmax_regression(x, rows, penalty, offset=absent.unsqueeze(1))
        return {"head.weight": found[:, :-1].mT, "head.bias": found[:, -1] + absent, **self.centered(own)}

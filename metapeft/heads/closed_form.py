"""Heads in closed form: nearest centroid, ridge regression, k nearest neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metapeft.arguments import number
from metapeft.heads.head import Head, Tensors, absent_bias, one_hot
from metapeft.heads.linear import PrototypeInit


@dataclass(frozen=True)
class Prototypes(PrototypeInit):
    """Nearest centroid: logits `-s |x - c_n|^2`, less the part `-s |x|^2` that all classes share.

    The scale s is learned as a logarithm, the outer group `head`.
    Source: Snell et al. 2017, prototypical networks, eqs. 1 and 2.

    Args:
        scale: where s starts.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[0.0], [2.0]]])
        >>> Prototypes().logits(x, Prototypes().start(x, torch.tensor([[0, 1]]), ways=2)).argmax(-1)
        tensor([[0, 1]])
    """

    inner: ClassVar[bool] = False


@dataclass(frozen=True)
class Ridge(Head):
    """Ridge regression onto one-hot labels: `W = scale * X^T (X X^T + penalty I)^-1 Y`, logits `x W + bias`.

    Penalty and scale are learned as logarithms, the bias as it is: the outer group `head`.
    Source: Bertinetto et al. 2019 (R2-D2), eqs. 6 and 7.

    Args:
        penalty, scale, bias: where the learned values start.

    Raises:
        ValueError: a penalty or a scale that is not above 0.

    Example:
        >>> import torch
        >>> x = torch.eye(2).unsqueeze(0)
        >>> head = Ridge(penalty=1.0)
        >>> head.start(x, torch.tensor([[0, 1]]), ways=2)["head.weight"]
        tensor([[[0.5000, 0.0000],
                 [0.0000, 0.5000]]])
    """

    penalty: float = 1.0
    scale: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        number(above=True, penalty=self.penalty, scale=self.scale)

    def learned(self) -> dict[str, Tensor]:
        return {
            "log_penalty": torch.tensor(math.log(self.penalty), dtype=torch.float64),
            "log_scale": torch.tensor(math.log(self.scale), dtype=torch.float64),
            "bias": torch.tensor(float(self.bias), dtype=torch.float64),
        }

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
        x = features if mask is None else features * mask.unsqueeze(-1).to(features)
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        gram = torch.bmm(x, x.transpose(1, 2)) + values["log_penalty"].exp() * eye
        weight = torch.bmm(torch.linalg.solve(gram, rows).transpose(1, 2), x) * values["log_scale"].exp()
        return {"head.weight": weight, "head.bias": absent_bias(rows) + values["bias"]}


@dataclass(frozen=True)
class KNN(Head):
    """Votes of the k nearest support items by Euclidean distance; ties go to the nearer items. For evaluation only.

    Source: the evaluation of MetaLoRA (Wang & Zhao 2025), k = 5 and 10.

    Args:
        k: how many neighbours vote; all items where the support set has fewer.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[0.0], [2.0]]])
        >>> KNN(k=1).logits(x, KNN(k=1).start(x, torch.tensor([[0, 1]]), ways=2)).argmax(-1)
        tensor([[0, 1]])
    """

    k: int = 5
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k={self.k!r}: the number of neighbours is a whole number of at least 1")

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        rows = one_hot(y, ways, mask, features)
        return {"head.features": features, "head.labels": rows}

    def logits(self, features: Tensor, tensors: Tensors) -> Tensor:
        known, labels = tensors["head.features"], tensors["head.labels"]
        distance = torch.cdist(features, known)
        present = labels.sum(-1) > 0
        distance = distance.masked_fill(~present.unsqueeze(1), math.inf)
        k = min(self.k, known.shape[1])
        nearest, index = distance.topk(k, dim=-1, largest=False)
        # a later neighbour's vote is smaller by less than any difference of whole votes
        votes = (1.0 - torch.arange(k, device=features.device) / (k * k + 1.0)).to(features)
        votes = votes * nearest.isfinite()
        own = labels.unsqueeze(1).expand(-1, features.shape[1], -1, -1)
        chosen = own.gather(2, index.unsqueeze(-1).expand(*index.shape, labels.shape[-1]))
        return (chosen * votes.unsqueeze(-1)).sum(2)

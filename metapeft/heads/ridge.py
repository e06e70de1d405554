"""Ridge regression onto one-hot labels, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.base.arguments import number
from metapeft.episodes.class_rows import one_hot
from metapeft.heads.head import Tensors, absent_bias
from metapeft.heads.normalized import OnFeatures
from metapeft.inner.closed_form import ridge


@dataclass(frozen=True)
class Ridge(OnFeatures):
    """Ridge regression onto one-hot labels: `W = scale * X^T (X X^T + penalty I)^-1 Y`, logits `x W + bias`.

    It is solved in the smaller of the two spaces, the items' or the features'. Penalty and scale are learned as
    logarithms, the bias as it is: the outer group `head`.
    Source: Bertinetto et al. 2019 (R2-D2), eqs. 6 and 7.

    Args:
        penalty, scale, bias: where the learned values start.
        normalize: see `OnFeatures`.

    Raises:
        ValueError: a penalty or a scale that is not above 0.
        NumericalError: from `start`, a system that is not positive definite, or not finite.

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
        super().__post_init__()
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
        values = {name: value.to(features) for name, value in self.own(learned).items()}
        features = self.normalized(features, values.get("center"))
        rows = one_hot(y, ways, mask, features)
        weight = ridge(features, rows, values["log_penalty"].exp(), self.item_weights(rows, mask))
        bias = absent_bias(rows) + values["bias"]
        return {
            "head.weight": weight.mT * values["log_scale"].exp(),
            "head.bias": bias,
            **self.centered(values),
        }

    def item_weights(self, rows: Tensor, mask: Tensor | None) -> Tensor | None:
        """How much each item counts, `(T, S)`, from the rows of `one_hot`; None where all count 1."""
        return None if mask is None else mask.to(rows)


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

    def item_weights(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        count = rows.sum(1)
        present = (count > 0).sum(1, keepdim=True)
        each = count.sum(1, keepdim=True) / (present * count.clamp_min(1.0))
        return torch.bmm(rows, each.unsqueeze(-1)).squeeze(-1)

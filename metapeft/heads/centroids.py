"""Nearest-centroid heads: in closed form, and as the start of what the inner solver moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metapeft.base.arguments import number
from metapeft.heads.head import Head, Tensors, absent_bias, class_means, one_hot


@dataclass(frozen=True)
class PrototypeInit(Head):
    """The nearest-centroid classifier, `W = 2 s c`, `b = -s |c|^2`, as the start of what the inner solver moves.

    The logits are `-s |x - c_n|^2`, less what all classes share. The scale s changes no prediction before adaptation,
    but how sure they are, and with it every gradient; it is learned as a logarithm, the outer group `head`.
    Gradients flow through the start. Source: Triantafillou et al. 2020 (Proto-MAML), section 3; a learned scale:
    Oreshkin et al. 2018 (TADAM), section 3.1.

    Args:
        scale: where s starts.

    Raises:
        ValueError: a scale that is not above 0.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[0.0], [2.0]]])
        >>> head = PrototypeInit()
        >>> head.logits(x, head.start(x, torch.tensor([[0, 1]]), ways=2))
        tensor([[[ 0., -4.],
                 [ 0.,  4.]]])
    """

    inner: ClassVar[bool] = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        number(above=True, scale=self.scale)

    def learned(self) -> dict[str, Tensor]:
        return {"log_scale": torch.tensor(math.log(self.scale), dtype=torch.float64)}

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        rows = one_hot(y, ways, mask, features)
        centre = class_means(features, rows)
        scale = (self.learned() if learned is None else learned)["log_scale"].to(features).exp()
        bias = -scale * centre.square().sum(-1) + absent_bias(rows)
        return {"head.weight": 2.0 * scale * centre, "head.bias": bias}


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

"""Nearest-centroid heads: in closed form, and as the start of what the inner solver moves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metapeft.base.arguments import number
from metapeft.episodes.class_rows import class_means, one_hot
from metapeft.heads.head import Tensors, absent_bias, linear
from metapeft.heads.normalized import CENTER, OnFeatures, unit


@dataclass(frozen=True)
class PrototypeInit(OnFeatures):
    """The nearest-centroid classifier, `W = 2 s c`, `b = -s |c|^2`, as the start of what the inner solver moves.

    The logits are `-s |x - c_n|^2`, less what all classes share; with `metric="cosine"` they are `s cos(x, c_n)`,
    `W = s c / |c|`, `b = 0`, of features of length one. The scale s changes no prediction before adaptation,
    but how sure they are, and with it every gradient; it is learned as a logarithm, the outer group `head`.
    Gradients flow through the start. Source: Triantafillou et al. 2020 (Proto-MAML), section 3; a learned scale:
    Oreshkin et al. 2018 (TADAM), section 3.1; cosine: Chen et al. 2021 (Meta-Baseline), eq. 3.

    Args:
        scale: where s starts.
        metric: None for squared Euclidean distance, or `"cosine"`.
        normalize: see `OnFeatures`; under cosine the class means are of the features as it leaves them.

    Raises:
        ValueError: a scale that is not above 0, another metric.

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
    metric: Literal["cosine"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        number(above=True, scale=self.scale)
        if self.metric not in (None, "cosine"):
            raise ValueError(f"metric={self.metric!r}: allowed are None (squared Euclidean) and 'cosine'")

    @property
    def linear(self) -> bool:
        return self.normalize is None and self.metric is None

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
        own = self.own(learned)
        rows = one_hot(y, ways, mask, features)
        mean = class_means(self.normalized(features, own.get("center")), rows)
        scale, bias = own["log_scale"].to(features).exp(), absent_bias(rows)
        if self.metric == "cosine":
            weight = scale * unit(mean)
        else:
            weight, bias = 2.0 * scale * mean, bias - scale * mean.square().sum(-1)
        return {"head.weight": weight, "head.bias": bias, **self.centered(own)}

    def logits(self, features: Tensor, tensors: Tensors) -> Tensor:
        read = self.normalized(features, tensors.get(CENTER))
        if self.metric == "cosine" and self.normalize is None:
            read = unit(read)
        return linear(read, tensors)


@dataclass(frozen=True)
class Prototypes(PrototypeInit):
    """Nearest centroid: logits `-s |x - c_n|^2`, less the part `-s |x|^2` that all classes share.

    The scale s is learned as a logarithm, the outer group `head`.
    Source: Snell et al. 2017, prototypical networks, eqs. 1 and 2.

    Args:
        scale, metric, normalize: as in `PrototypeInit`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[0.0], [2.0]]])
        >>> Prototypes().logits(x, Prototypes().start(x, torch.tensor([[0, 1]]), ways=2)).argmax(-1)
        tensor([[0, 1]])
    """

    inner: ClassVar[bool] = False


@dataclass(frozen=True)
class Cosine(OnFeatures):
    """The learned cosine classifier: logits `s cos(x, w_n)`, whose weights start as class means and are then moved.

    The inner solver sees the weights behind their normalisation, so that it turns them and does not lengthen them.
    Source: Chen et al. 2019 (Baseline++, arXiv 1904.04232), section 3.2; class means as the start are ours.

    Args:
        scale: s, a setting. normalize: see `OnFeatures`.

    Raises:
        ValueError: a scale that is not above 0.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> head = Cosine()
        >>> head.logits(x, head.start(x, torch.tensor([[0, 1]]), ways=2))
        tensor([[[10.,  0.],
                 [ 0., 10.]]])
    """

    inner: ClassVar[bool] = True
    scale: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number(above=True, scale=self.scale)

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        own = self.own(learned)
        rows = one_hot(y, ways, mask, features)
        mean = class_means(unit(self.normalized(features, own.get("center"))), rows)
        return {"head.weight": unit(mean), "head.bias": absent_bias(rows), **self.centered(own)}

    def logits(self, features: Tensor, tensors: Tensors) -> Tensor:
        read = unit(self.normalized(features, tensors.get(CENTER)))
        return linear(read, {**tensors, "head.weight": self.scale * unit(tensors["head.weight"])})

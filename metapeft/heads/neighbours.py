"""Votes of the nearest support items, for evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.episodes.class_rows import one_hot
from metapeft.heads.head import Tensors, wide
from metapeft.heads.normalized import CENTER, OnFeatures


@dataclass(frozen=True)
class KNN(OnFeatures):
    """Votes of the k nearest support items by Euclidean distance; ties go to the nearer items.

    It is for evaluation only. Source: the evaluation of MetaLoRA (Wang & Zhao 2025), k = 5 and 10.

    Args:
        k: how many neighbours vote; all items where the support set has fewer.
        normalize: see `OnFeatures`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[0.0], [2.0]]])
        >>> KNN(k=1).logits(x, KNN(k=1).start(x, torch.tensor([[0, 1]]), ways=2)).argmax(-1)
        tensor([[0, 1]])
    """

    k: int = 5
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(k=self.k)

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        rows = one_hot(y, ways, mask, features)
        known = self.normalized(features, self.own(learned).get("center"))
        return {"head.features": known, "head.labels": rows, **self.centered(learned)}

    def logits(self, features: Tensor, tensors: Tensors) -> Tensor:
        known, labels = tensors["head.features"], tensors["head.labels"]
        own = self.normalized(features, tensors.get(CENTER))
        distance = torch.cdist(wide(own), wide(known)).to(own)
        present = labels.sum(-1) > 0
        distance = distance.masked_fill(~present.unsqueeze(1), math.inf)
        k = min(self.k, known.shape[1])
        nearest, index = distance.topk(k, dim=-1, largest=False)
        # a later neighbour's vote is smaller by less than any difference of whole votes
        votes = (1.0 - torch.arange(k, device=features.device) / (k * k + 1.0)).to(features)
        votes = votes * nearest.isfinite()
        votes_of = labels.unsqueeze(1).expand(-1, features.shape[1], -1, -1)
        chosen = votes_of.gather(2, index.unsqueeze(-1).expand(*index.shape, labels.shape[-1]))
        return (chosen * votes.unsqueeze(-1)).sum(2)

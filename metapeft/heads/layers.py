"""Linear layers as heads: the one that the backbone has, and a fresh one of zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metapeft.episodes.class_rows import one_hot
from metapeft.heads.head import Head, Tensors, absent_bias


@dataclass(frozen=True)
class Learned(Head):
    """The classifier that the backbone has: its start is outer, and it is a target of updates like any other layer.

    Example:
        >>> Learned().inner
        False
    """


@dataclass(frozen=True)
class Zero(Head):
    """A fresh layer of zeros, full, moved by the inner solver.

    With LoRA's `B = 0` the first inner step moves only the head, the second also B, the third also A.

    Example:
        >>> import torch
        >>> start = Zero().start(torch.ones(2, 3, 4), torch.tensor([[0, 1, 2]] * 2), ways=3)
        >>> {name: tuple(value.shape) for name, value in start.items()}
        {'head.weight': (2, 3, 4), 'head.bias': (2, 3)}
    """

    inner: ClassVar[bool] = True

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        tasks, _, width = features.shape
        bias = absent_bias(one_hot(y, ways, mask, features))
        return {"head.weight": features.new_zeros(tasks, ways, width), "head.bias": bias}

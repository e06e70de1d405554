"""What a head has to offer: tensors from a support set, logits from features and those tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
# The bias of a class that an episode does not have: its probability is 0 in every floating-point type.
ABSENT = -1e9


class Head:
    """Base of the heads; a frozen dataclass that holds only settings.

    Letters: `features (T, S, F)`, labels `y (T, S)` int64 in `0 .. ways-1`, `mask (T, S)` True for items that count.

    Example:
        >>> head, tensors = Head(), {"head.weight": torch.ones(1, 3, 4), "head.bias": torch.zeros(1, 3)}
        >>> head.logits(torch.ones(1, 2, 4), tensors).shape
        torch.Size([1, 2, 3])
    """

    #: whether the inner solver moves the head's tensors; otherwise they are a closed form of the current features
    inner: ClassVar[bool] = False
    #: whether gradients may be taken through it
    differentiable: ClassVar[bool] = True

    @property
    def linear(self) -> bool:
        """Whether its logits are `features weight^T + bias`; of a head with logits of its own nobody knows."""
        return type(self).logits is Head.logits

    def learned(self) -> dict[str, Tensor]:
        """What the head itself learns, the outer group `head`: name -> initial value."""
        return {}

    def start(
        self,
        features: Tensor,
        y: Tensor,
        ways: int,
        mask: Tensor | None = None,
        learned: Tensors | None = None,
    ) -> dict[str, Tensor]:
        """The head's tensors for each task: `head.weight (T, N, F)` and `head.bias (T, N)`.

        `learned` comes only where `learned()` names something; a head without may leave it out.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no start")

    def logits(self, features: Tensor, tensors: Tensors) -> Tensor:
        """Logits `(T, B, N)` of features `(T, B, F)`: `features weight^T + bias`."""
        return linear(features, tensors)


def linear(features: Tensor, tensors: Tensors) -> Tensor:
    """`features weight^T + bias`, `(T, B, N)`, of a head's tensors."""
    bias = tensors["head.bias"].unsqueeze(1)
    return torch.baddbmm(bias, features, tensors["head.weight"].transpose(1, 2))


def absent_bias(rows: Tensor) -> Tensor:
    """`(T, N)`: 0 for classes that occur among the rows of `one_hot`, `ABSENT` for the others."""
    return torch.where(rows.sum(1) > 0, 0.0, ABSENT).to(rows)


HEAD = ("head.weight", "head.bias")


def wide(x: Tensor) -> Tensor:
    """Half types as float32, in which closed forms are computed: torch decomposes no half matrices.

    Example:
        >>> wide(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

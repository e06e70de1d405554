"""Constraints by parametrisation: smooth maps from all of R^n onto a set, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def positive(x: Tensor) -> Tensor:
    """`log(1 + e^x)`, above 0.

    Example:
        >>> positive(torch.tensor([0.0]))
        tensor([0.6931])
    """
    return F.softplus(x)


def from_positive(value: Tensor) -> Tensor:
    """The x with `positive(x) = value`: `log(e^value - 1)`; raises ValueError unless all values are above 0.

    Example:
        >>> positive(from_positive(torch.tensor([0.01, 3.0])))
        tensor([0.0100, 3.0000])
    """
    if not bool((value > 0).all()):
        raise ValueError(f"value has to be above 0 everywhere, its smallest entry is {value.min().item()}")
    return value + torch.log(-torch.expm1(-value))


def box(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """`low + (high - low) / (1 + e^-x)`, between low and high.

    Example:
        >>> box(torch.tensor([0.0]), -1.0, 3.0)
        tensor([1.])
    """
    return low + (high - low) * torch.sigmoid(x)


def from_box(value: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """The x with `box(x, low, high) = value`; raises ValueError unless all values lie strictly inside.

    Example:
        >>> box(from_box(torch.tensor([0.1, 0.7]), 0.0, 1.0), 0.0, 1.0)
        tensor([0.1000, 0.7000])
    """
    if not bool(((value > low) & (value < high)).all()):
        raise ValueError("value has to lie strictly between low and high everywhere")
    return torch.logit((value - low) / (high - low))


def simplex(x: Tensor, dim: int = -1) -> Tensor:
    """`softmax(x)`: above 0, sums to 1 along `dim`.

    Example:
        >>> simplex(torch.zeros(4))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return torch.softmax(x, dim)


def from_simplex(value: Tensor, dim: int = -1) -> Tensor:
    """The x of mean 0 with `simplex(x) = value`; raises ValueError unless value is a positive distribution.

    Example:
        >>> simplex(from_simplex(torch.tensor([0.2, 0.8])))
        tensor([0.2000, 0.8000])
    """
    total = value.sum(dim)
    if not bool((value > 0).all()) or not bool((total - 1).abs().max() <= 1e-4):
        raise ValueError("value has to be above 0 everywhere and to sum to 1")
    logs = value.log()
    return logs - logs.mean(dim, keepdim=True)

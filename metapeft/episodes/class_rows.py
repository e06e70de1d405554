"""Labels as rows of zeros and ones, and means over the classes that they say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(y: Tensor, ways: int, mask: Tensor | None, like: Tensor) -> Tensor:
    """Labels as rows `(T, S, N)` of zeros and ones; rows that the mask leaves out are zero."""
    rows = F.one_hot(y, ways).to(like)
    return rows if mask is None else rows * mask.unsqueeze(-1).to(like)


def class_means(features: Tensor, rows: Tensor) -> Tensor:
    """Mean features of each class, `(T, N, F)`; 0 for a class that does not occur."""
    count = rows.sum(1).clamp_min(1.0).unsqueeze(-1)
    return torch.bmm(rows.transpose(1, 2), features) / count

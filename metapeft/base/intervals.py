"""Means with their intervals, on what SciPy computes."""

from __future__ import annotations

import math

from scipy.special import stdtrit
from torch import Tensor


def mean_interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Mean of `values` `(n,)` and the half-width of its t-interval, `t_{n-1} s / sqrt(n)`; infinite for n = 1.

    Example:
        >>> import torch
        >>> mean, half = mean_interval(torch.tensor([0.0, 1.0, 0.0, 1.0]))
        >>> round(mean, 3), round(half, 3)
        (0.5, 0.919)
    """
    values = values.double()
    count = values.numel()
    if count < 2:
        return float(values.mean()), math.inf
    quantile = float(stdtrit(count - 1, 0.5 + level / 2))
    return float(values.mean()), quantile * float(values.std()) / math.sqrt(count)

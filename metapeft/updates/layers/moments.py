"""Mean and variance of the channels, task by task, and their derivatives of every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metapeft.updates.layers.function import Function


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance `(T, C)` of `x` `(T, S, C, L)` over items and positions.

    It goes through the kernel that batch norm itself uses, task by task: 12 times as fast as `torch.var_mean` over
    the same axes (one core, 16 tasks of 5 x 64 x 784 with channels last: 2.8 against 33 ms).

    Example:
        >>> mean, variance = moments(torch.tensor([[[[1.0, 3.0]], [[1.0, 3.0]]]]))
        >>> mean, variance
        (tensor([[2.]]), tensor([[1.]]))
    """
    mean, variance = _Moments.apply(x)
    return mean, variance


class _Moments(Function):
    """The gradient is `x -> a x + b` with coefficients of each channel, one pass that autograd takes further."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        found = [torch.batch_norm_update_stats(task.unsqueeze(2), None, None, 0.0) for task in x]
        mean, variance = (torch.stack(values) for values in zip(*found))
        return mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])
        ctx.save_for_forward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.shape[1] * x.shape[3]
        slope = of_variance * (2 / count)
        return torch.addcmul(_spread(of_mean / count - slope * mean), x, _spread(slope))

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> tuple[Tensor, Tensor]:
        x, mean = ctx.saved_tensors
        return dx.mean((1, 3)), 2 * ((x - _spread(mean)) * dx).mean((1, 3))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """One axis more is more tasks."""
        found = moments(x.movedim(in_dims[0], 0).flatten(0, 1))
        mean, variance = (torch.unflatten(value, 0, (info.batch_size, -1)) for value in found)
        return (mean, variance), (0, 0)


def _spread(value: Tensor) -> Tensor:
    """`(T, C)` beside `(T, S, C, L)`."""
    return value[:, None, :, None]

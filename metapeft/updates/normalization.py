"""Batch normalisation with explicit statistics: the buffers, or those of a task's own reference items."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.updates.call import Call, Update, group_mean_variance
from metapeft.updates.layers import batch_norm_affine

EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm)


def batch_norm(
    module: nn.Module, clone: nn.Module, call: Call, updates: dict[str, Update], name: str, x: Tensor
) -> Tensor:
    """Normalise each task by the buffers, or by the statistics of its first `call.reference` items.

    Statistics are biased, as in torch's train mode, and go into `call.statistics[name]`. A subclass that does
    more than normalise (timm's, with their activation) runs its own forward on the normalised input, with
    buffers that leave it as it is.

    Args:
        module: the leaf; `clone` is a copy of it with the class's own forward.
        x: `(T*B, C, ...)`.
    """
    assert isinstance(module, BatchNorm)
    if call.reference is None:
        if module.running_mean is None or module.running_var is None:
            raise ValueError(
                f'norm="running" but {name!r} keeps no running statistics: '
                'use norm="support" or "transductive", or a layer with track_running_stats=True'
            )
        mean, variance = module.running_mean, module.running_var
    else:
        split = x.view(call.tasks, call.items, x.shape[1], -1)
        mean, variance, count = group_mean_variance(split[:, : call.reference], call.mask)
        call.statistics[name] = (mean, variance, count)
    if type(module) not in EXACT:
        return _subclass(module, clone, call, updates, x, mean, variance)
    weight, bias = batch_norm_affine(module, call, updates)
    if mean.dim() == 1 and (weight is None or weight.dim() == 1) and (bias is None or bias.dim() == 1):
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, module.eps)
    scale = torch.rsqrt(variance + module.eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return _scale_shift(x, scale, shift, call)


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor, call: Call) -> Tensor:
    """`x * scale + shift` with `(C)` or `(T, C)` coefficients on `(T*B, C, ...)`."""

    def rows(value: Tensor) -> Tensor:
        return value.expand(call.tasks, -1).reshape(call.tasks, 1, -1, 1)

    split = x.reshape(call.tasks, call.items, x.shape[1], -1)
    return torch.addcmul(rows(shift), split, rows(scale)).view(x.shape)


def _subclass(
    module: BatchNorm,
    clone: nn.Module,
    call: Call,
    updates: dict[str, Update],
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
) -> Tensor:
    if updates:
        raise ValueError(
            f"{type(module).__name__} is a batch norm of its own kind: its affine parameters cannot carry an update; "
            "leave them out of targets"
        )
    scale = torch.rsqrt(variance + module.eps)
    x = _scale_shift(x, scale, -mean * scale, call)
    channels = x.shape[1]
    neutral = {
        "running_mean": torch.zeros(channels, dtype=x.dtype, device=x.device),
        "running_var": torch.full((channels,), 1.0 - module.eps, dtype=x.dtype, device=x.device),
    }
    parameters = dict(module.named_parameters())
    result: Tensor = torch.func.functional_call(clone, {**parameters, **neutral}, (x,))
    return result

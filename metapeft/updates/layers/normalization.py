"""Batch normalisation with explicit statistics: the buffers, or those of a task's own reference items."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.updates.layers.call import Call, Update
from metapeft.updates.layers.moments import moments

_EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
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
        module: the leaf module. clone: a copy of it with the class's own forward.
        updates: of its affine parameters. name: the module's.
        x: `(rows, C, ...)`.

    Raises:
        ValueError: statistics of buffers that the layer does not have; an update on a subclass.
    """
    if not isinstance(module, BatchNorm):
        raise TypeError(f"{type(module).__name__} is no batch norm")
    if (
        call.tasks == 1
        and call.reference == call.items
        and call.mask is None
        and not updates
        and type(module) in _EXACT
        and _fused_is_right(x)
    ):
        return _one_task(module, call, name, x)
    if call.reference is None:
        if module.running_mean is None or module.running_var is None:
            raise ValueError(
                f'norm="running" but {name!r} keeps no running statistics: '
                'use norm="support" or "transductive", or a layer with track_running_stats=True'
            )
        mean, variance = module.running_mean, module.running_var
    else:
        mean, variance, count = reference_statistics(x, call)
        call.statistics[name] = (mean, variance, count)
    weight, bias = (_affine(module, call, updates, which) for which in ("weight", "bias"))
    exact = type(module) in _EXACT
    if (
        exact
        and _fused_is_right(x)
        and all(value is None or value.dim() == 1 for value in (mean, weight, bias))
    ):
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, module.eps)
    scale = torch.rsqrt(variance + module.eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    y = _scale_shift(_by_task(x, call), scale, shift).view(x.shape)
    return y if exact else _rest(module, clone, y, name)


def _fused_is_right(x: Tensor) -> bool:
    """Whether torch's kernel may be taken: its gradient of one image is wrong where its own comes channels last."""
    return x.shape[0] > 1 or x.dim() < 4 or not torch.is_grad_enabled()


def _one_task(module: BatchNorm, call: Call, name: str, x: Tensor) -> Tensor:
    """One task on the statistics of its own batch: torch's fused kernel, which gives them back."""
    y, mean, deviation = torch.native_batch_norm(
        x, module.weight, module.bias, None, None, True, 0.0, module.eps
    )
    count = torch.full((1,), x.numel() // x.shape[1], dtype=x.dtype, device=x.device)
    call.statistics[name] = (mean.unsqueeze(0), (deviation**-2 - module.eps).unsqueeze(0), count)
    return y


def _by_task(x: Tensor, call: Call) -> Tensor:
    """`(rows, C, ...)` as `(T, rows / T, C, L)`."""
    return x.reshape(call.tasks, x.shape[0] // call.tasks, x.shape[1], -1)


def reference_statistics(x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance `(T, C)` and count `(T,)` of `x` `(rows, C, ...)` over each task's reference items."""
    split = _by_task(x, call)
    each = split.shape[1] // call.items  # rows an input: more than one where an image is cut into windows
    mask = None if call.mask is None else call.mask.repeat_interleave(each, 1)
    reference = None if call.reference is None else call.reference * each
    return mean_variance(split[:, :reference], mask)


def mean_variance(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance `(T, C)` of `x` `(T, S, C, L)` over items and positions, and the count `(T,)`.

    Args:
        x: activations of the reference items.
        mask: `(T or 1, S)`, True for items that count; None for all.
    """
    tasks, items, _, length = x.shape
    if mask is None:
        return *moments(x), torch.full((tasks,), items * length, dtype=x.dtype, device=x.device)
    keep = mask.expand(tasks, -1).view(tasks, items, 1, 1)
    count = keep.sum((1, 2, 3)).to(x.dtype) * length
    mean = torch.where(keep, x, 0.0).sum((1, 3)) / count[:, None]
    centred = torch.where(keep, x - mean[:, None, :, None], 0.0)
    return mean, centred.square().sum((1, 3)) / count[:, None], count


def _affine(module: nn.Module, call: Call, updates: dict[str, Update], name: str) -> Tensor | None:
    """Weight or bias of a batch norm, `(C)` shared or `(T, C)`; None where the layer has none."""
    shared: Tensor | None = getattr(module, name)
    if shared is None or name not in updates:
        return shared
    return shared + updates[name].delta(call.rows)


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x * scale + shift` with `(C)` or `(T, C)` coefficients on `x` `(T, M, C, L)`."""

    def rows(value: Tensor) -> Tensor:
        return value.expand(x.shape[0], -1).reshape(x.shape[0], 1, -1, 1)

    return torch.addcmul(rows(shift), x, rows(scale))


def _rest(module: BatchNorm, clone: nn.Module, x: Tensor, name: str) -> Tensor:
    """What a subclass does beside normalising: its forward with a state that leaves its input as it is."""
    if module.running_mean is None:
        raise ValueError(
            f"{name!r} is a {type(module).__name__}, a batch norm of its own kind, and keeps no statistics: "
            "use torch's own layer, or track_running_stats=True"
        )
    channels = x.shape[1]
    neutral = {
        "running_mean": x.new_zeros(channels),
        "running_var": x.new_full((channels,), 1.0 - module.eps),
    }
    if module.weight is not None:
        neutral["weight"] = x.new_ones(channels)
    if module.bias is not None:
        neutral["bias"] = x.new_zeros(channels)
    result: Tensor = torch.func.functional_call(clone, neutral, (x,))
    return result

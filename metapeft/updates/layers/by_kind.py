"""How the common kinds of leaf module run on all tasks at once.

A leaf module owns parameters. Each function here takes `x` `(rows, ...)`, where the `T*B` inputs
(or a multiple of them, windows of an image say) come one after another, task by task, and uses batched
products on the unflattened activations. All other types go through `vectorized.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.updates.layers.call import Call, Update
from metapeft.updates.layers.convolution import convolve_dense, convolve_low_rank, spatial

Updates = dict[str, Update]
Run = Callable[[nn.Module, Call, Updates, Tensor], Tensor]


def linear(module: nn.Module, call: Call, updates: Updates, x: Tensor) -> Tensor:
    """`y = x (W0 + Delta_t)^T + b`, also for GPT-2's `Conv1D`, which stores `W0^T`."""
    stored_in_out = not isinstance(module, nn.Linear)
    weight, bias = _tensor(module, "weight"), _optional(module, "bias")
    shared = weight.t() if stored_in_out else weight  # (out, in)
    update = updates.get("weight")
    turned = update is not None and update.geometry.transposed != stored_in_out  # tied to an Embedding
    if update is None:
        y = F.linear(x, shared, bias)
    elif update.format.dense or (turned and update.per_input):
        own = weight + update.delta(call.rows)  # (T or rows, *stored)
        rows = x.reshape(own.shape[0], -1, x.shape[-1])
        y = torch.bmm(rows, own if stored_in_out else own.transpose(1, 2)).view(*x.shape[:-1], -1)
        y = y if bias is None else y + bias
    else:
        down, up = _thin(update, turned)
        rows = x.reshape(call.tasks, -1, x.shape[-1])
        hidden = update.mix(torch.bmm(rows, down.transpose(1, 2)))
        y = torch.baddbmm(F.linear(rows, shared, bias), hidden, up.transpose(1, 2)).view(*x.shape[:-1], -1)
    return _add_bias(y, call, updates, -1)


def convolution(module: nn.Module, call: Call, updates: Updates, x: Tensor) -> Tensor:
    """A 1-d or 2-d convolution with `W0 + Delta_t`; every option of torch's layers."""
    options = spatial(module)
    weight, bias = _tensor(module, "weight"), _optional(module, "bias")
    update = updates.get("weight")
    x = options.pad(x)
    if update is None:
        y = options.convolve(x, weight, bias)
    elif update.format.dense:
        y = convolve_dense(options, x, weight + update.delta(call.rows), bias)
    else:
        y = convolve_low_rank(options, x, weight, bias, update)
    return _add_bias(y, call, updates, 1)


def embedding(module: nn.Module, call: Call, updates: Updates, x: Tensor) -> Tensor:
    """Rows of `W0 + Delta_t`; the row of `padding_idx` receives no gradient, as in torch's layer."""
    weight, update = _tensor(module, "weight"), updates["weight"]
    turned = not update.geometry.transposed  # tied to a Linear
    padding: int | None = module.padding_idx  # type: ignore[assignment]
    if update.format.dense or (turned and update.per_input):
        own = _rows(update.delta(call.rows), x)
    else:
        down, up = _thin(update, turned)
        own = torch.bmm(update.mix(_rows(down.transpose(1, 2), x)), up.transpose(1, 2))
    own = own.view(*x.shape, -1)
    if padding is not None:
        own = torch.where((x == padding).unsqueeze(-1), own.detach(), own)
    return F.embedding(x, weight, padding) + own


def layer_norm(module: nn.Module, call: Call, updates: Updates, x: Tensor) -> Tensor:
    """Layer norm with affine parameters per task."""
    shape: tuple[int, ...] = module.normalized_shape  # type: ignore[assignment]
    y = F.layer_norm(x, shape, None, None, module.eps)  # type: ignore[arg-type]
    return _affine(module, call, updates, y, len(shape))


def rms_norm(module: nn.Module, call: Call, updates: Updates, x: Tensor) -> Tensor:
    """Root-mean-square norm with a scale per task."""
    shape: tuple[int, ...] = module.normalized_shape  # type: ignore[assignment]
    y = F.rms_norm(x, shape, None, module.eps)  # type: ignore[arg-type]
    return _affine(module, call, updates, y, len(shape))


def group_norm(module: nn.Module, call: Call, updates: Updates, x: Tensor) -> Tensor:
    """Group norm with affine parameters per task."""
    y = F.group_norm(x, module.num_groups, None, None, module.eps)  # type: ignore[arg-type]
    return _affine(module, call, updates, y.movedim(1, -1), 1).movedim(-1, 1)


def _tensor(module: nn.Module, name: str) -> Tensor:
    value: Tensor = getattr(module, name)
    return value


def _optional(module: nn.Module, name: str) -> Tensor | None:
    value: Tensor | None = getattr(module, name, None)
    return value


def _thin(update: Update, turned: bool) -> tuple[Tensor, Tensor]:
    """`down` `(T, channels, in)` and `up` `(T, out, channels)`; the transposed update's where `turned`."""
    if turned:
        return update.up.transpose(1, 2), update.down.transpose(1, 2)
    return update.down, update.up


def _rows(tables: Tensor, index: Tensor) -> Tensor:
    """`tables` `(T, n, c)` at each task's share of `index`: `(T, M, c)`."""
    index = index.reshape(tables.shape[0], -1, 1)
    return tables.gather(1, index.expand(-1, -1, tables.shape[-1]))


def _add_bias(y: Tensor, call: Call, updates: Updates, axis: int) -> Tensor:
    """Add a bias per task (`Full` on a bias) along `axis` of `y` `(rows, ...)`."""
    if "bias" not in updates:
        return y
    delta = updates["bias"].delta(call.rows)
    split = torch.unflatten(y, 0, (call.tasks, -1))
    shape = [1] * split.dim()
    shape[0], shape[axis + 1 if axis >= 0 else axis] = delta.shape
    return (split + delta.view(shape)).flatten(0, 1)


def _affine(module: nn.Module, call: Call, updates: Updates, y: Tensor, axes: int) -> Tensor:
    """`y * (w + dw_t) + (b + db_t)` over the last `axes` axes of `y` `(rows, ...)`."""
    split = torch.unflatten(y, 0, (call.tasks, -1))
    for name in ("weight", "bias"):
        value = _optional(module, name)
        if value is None:
            continue
        if name in updates:
            own = value + updates[name].delta(call.rows)
            value = own.view(call.tasks, *[1] * (split.dim() - 1 - axes), *value.shape)
        split = split * value if name == "weight" else split + value
    return split.flatten(0, 1)

"""How each kind of leaf runs on all tasks at once.

A leaf is a module that owns parameters. Inputs come as `(T*B, ...)`; exact layer types use batched products on
the unflattened activations, every other type runs its own forward under `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.updates.call import Call, Update
from metapeft.updates.convolution import convolve_dense, convolve_low_rank, spatial

Run = Callable[[nn.Module, Call, dict[str, Update], Tensor], Tensor]


def _add_bias(y: Tensor, update: Update | None, axis: int, rows: int) -> Tensor:
    """Add a bias per task (`Full` on a bias) along `axis` of `y` `(T*B, ...)`."""
    if update is None:
        return y
    delta = update.delta(rows)
    shape = [delta.shape[0], 1, *[1] * (y.dim() - 1)]
    shape[axis + 1] = delta.shape[1]
    return (y.unflatten(0, (delta.shape[0], -1)) + delta.view(shape)).flatten(0, 1)


def linear(module: nn.Module, call: Call, updates: dict[str, Update], x: Tensor) -> Tensor:
    """`y = x (W0 + Delta_t)^T + b`, also for GPT-2's `Conv1D`, which stores `W0^T`."""
    x = call.batched(x)
    update, weight, bias = updates.get("weight"), module.weight, module.bias
    stored_in_out = not isinstance(module, nn.Linear)
    shared: Tensor = weight.t() if stored_in_out else weight  # type: ignore[operator,assignment]
    if update is None:
        y = F.linear(x, shared, bias)  # type: ignore[arg-type]
    elif (
        update.format.dense or update.geometry.transposed != stored_in_out
    ):  # the latter: tied to an Embedding
        matrix = weight + update.delta(call.rows)  # type: ignore[operator]
        rows = x.reshape(matrix.shape[0], -1, x.shape[-1])
        y = torch.bmm(rows, matrix if stored_in_out else matrix.transpose(1, 2)).view(*x.shape[:-1], -1)
        y = y if bias is None else y + bias  # type: ignore[operator]
    else:
        rows = x.reshape(call.tasks, -1, x.shape[-1])
        hidden = update.mix(torch.bmm(rows, update.down.transpose(1, 2)))
        y = F.linear(rows, shared, bias)  # type: ignore[arg-type]
        y = torch.baddbmm(y, hidden, update.up.transpose(1, 2)).view(*x.shape[:-1], -1)
    return _add_bias(y, updates.get("bias"), y.dim() - 1, call.rows)


def convolution(module: nn.Module, call: Call, updates: dict[str, Update], x: Tensor) -> Tensor:
    """A 1-d or 2-d convolution with `W0 + Delta_t`; every option of torch's layers."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    update = updates.get("weight")
    geometry = spatial(module)
    x = geometry.pad(call.batched(x))
    if update is None:
        y = geometry.convolve(x, module.weight, module.bias)
    elif update.format.dense:
        y = convolve_dense(geometry, x, module.weight + update.delta(call.rows), module.bias)
    else:
        y = convolve_low_rank(geometry, x, geometry.convolve(x, module.weight, module.bias), update)
    return _add_bias(y, updates.get("bias"), 1, call.rows)


def embedding(module: nn.Module, call: Call, updates: dict[str, Update], x: Tensor) -> Tensor:
    """Rows of `W0 + Delta_t`."""
    assert isinstance(module, nn.Embedding)
    x = call.batched(x)
    update = updates["weight"]
    y = F.embedding(x, module.weight)
    if update.format.dense or not update.geometry.transposed:
        table = update.delta(call.rows)
        index = x.reshape(table.shape[0], -1)
        own = table.gather(1, index.unsqueeze(-1).expand(-1, -1, table.shape[-1]))
        return y + own.view_as(y)
    index = x.reshape(call.tasks, -1)
    hidden = update.down.transpose(1, 2).gather(1, index.unsqueeze(-1).expand(-1, -1, update.down.shape[1]))
    return y + torch.bmm(update.mix(hidden), update.up.transpose(1, 2)).view_as(y)


def layer_norm(module: nn.Module, call: Call, updates: dict[str, Update], x: Tensor) -> Tensor:
    """Layer norm with affine parameters per task."""
    assert isinstance(module, nn.LayerNorm)
    x = call.batched(x)
    y = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
    return _affine(module, call, updates, y, len(module.normalized_shape))


def group_norm(module: nn.Module, call: Call, updates: dict[str, Update], x: Tensor) -> Tensor:
    """Group norm with affine parameters per task."""
    assert isinstance(module, nn.GroupNorm)
    x = call.batched(x)
    y = F.group_norm(x, module.num_groups, None, None, module.eps)
    return _affine(module, call, updates, y.movedim(1, -1), 1).movedim(-1, 1)


def _affine(module: nn.Module, call: Call, updates: dict[str, Update], y: Tensor, axes: int) -> Tensor:
    """`y * (w + dw_t) + (b + db_t)` over the last `axes` axes of `y` `(T*B, ...)`."""
    for name in ("weight", "bias"):
        value: Tensor | None = getattr(module, name)
        if value is None:
            continue
        if name in updates:
            own = value + updates[name].delta(call.rows)
            own = own.view(call.tasks, *[1] * (y.dim() - axes), *value.shape)
            split = y.unflatten(0, (call.tasks, -1))
            y = (split * own if name == "weight" else split + own).flatten(0, 1)
        else:
            y = y * value if name == "weight" else y + value
    return y


def batch_norm_affine(
    module: nn.Module, call: Call, updates: dict[str, Update]
) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a batch norm, `(C)` shared or `(T, C)`; None where the layer has none."""

    def value(name: str) -> Tensor | None:
        shared: Tensor | None = getattr(module, name)
        return shared + updates[name].delta(call.rows) if shared is not None and name in updates else shared

    return value("weight"), value("bias")


def own_forward(
    clone: nn.Module, module: nn.Module, call: Call, updates: dict[str, Update], args: Any, kwargs: Any
) -> Any:
    """Run a leaf's own forward for every task under `vmap`, its parameters replaced by `W0 + Delta_t`.

    Args:
        clone: a copy of the leaf with the class's own forward.
        module: the leaf, whose parameters are the current ones.
        updates: by name inside the leaf.
        args, kwargs: as the leaf was called; tensors with one row per input get a task axis.
    """
    parameters = {name: value for name, value in module.named_parameters(remove_duplicate=False)}
    buffers = dict(module.named_buffers())
    own = {name: parameters[name] + update.delta(call.rows) for name, update in updates.items()}
    groups = max([call.tasks, *[value.shape[0] for value in own.values()]])
    own = {
        n: v.repeat_interleave(groups // v.shape[0], 0) if v.shape[0] != groups else v for n, v in own.items()
    }
    shared = {**{n: v for n, v in parameters.items() if n not in own}, **buffers}
    if args and isinstance(args[0], Tensor) and not isinstance(clone, nn.MultiheadAttention):
        args = (call.batched(args[0]), *args[1:])
    axes = _batch_axes(clone, call)
    leaves, where, rebuild = _flatten((args, kwargs), axes, groups)

    def one(own: dict[str, Tensor], leaves: list[Tensor]) -> Any:
        a, k = rebuild(leaves)
        return torch.func.functional_call(clone, {**shared, **own}, a, k)

    output_axis = 1 if isinstance(clone, nn.MultiheadAttention) and not clone.batch_first else 0
    result = torch.func.vmap(one, in_dims=(0, where), randomness="different")(own, leaves)

    def merge(value: Any, axis: int) -> Any:
        return value.movedim(0, axis).flatten(axis, axis + 1) if isinstance(value, Tensor) else value

    if isinstance(result, tuple):  # attention: output and weights, whose batch axis is always the first
        return tuple(merge(value, output_axis if i == 0 else 0) for i, value in enumerate(result))
    return merge(result, output_axis)


def _batch_axes(clone: nn.Module, call: Call) -> Callable[[Any, Tensor], int | None]:
    """Which axis of each tensor argument is the batch, None where it has none."""
    if not isinstance(clone, nn.MultiheadAttention):
        return lambda key, value: 0 if value.dim() and value.shape[0] % call.rows == 0 else None
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")

    def axis(key: Any, value: Tensor) -> int | None:
        name = names[key] if isinstance(key, int) else key
        if name in ("query", "key", "value"):
            if value.dim() != 3:
                raise ValueError(
                    f"MultiheadAttention got {name} of {value.dim()} axes: a batch axis is needed"
                )
            return 0 if clone.batch_first else 1
        if name == "key_padding_mask":
            return 0
        return 0 if value.dim() == 3 else None

    return axis


def _flatten(
    call: tuple[Any, Any], axis: Callable[[Any, Tensor], int | None], groups: int
) -> tuple[list[Tensor], list[int | None], Callable[[list[Tensor]], tuple[Any, Any]]]:
    """Split arguments into tensors with a task axis to map over, and the rest; `rebuild` puts them together."""
    args, kwargs = call
    keys = [*range(len(args)), *kwargs]
    values = [*args, *kwargs.values()]
    leaves: list[Tensor] = []
    where: list[int | None] = []
    slots: list[int | None] = []
    for key, value in zip(keys, values):
        batch = axis(key, value) if isinstance(value, Tensor) else None
        if isinstance(value, Tensor):
            slots.append(len(leaves))
            leaves.append(value if batch is None else value.unflatten(batch, (groups, -1)))
            where.append(batch)
        else:
            slots.append(None)

    def rebuild(mapped: list[Tensor]) -> tuple[Any, Any]:
        full = [value if slot is None else mapped[slot] for slot, value in zip(slots, values)]
        return tuple(full[: len(args)]), dict(zip(list(kwargs), full[len(args) :]))

    return leaves, where, rebuild

"""Leaf modules of every other type: their own forward for each task, under `torch.func.vmap`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metapeft.updates.layers.call import Call, Update
from metapeft.updates.layers.layout import Layouts, spread
from metapeft.updates.layers.slots import Slots


class PaddedEmbedding(TorchFunctionMode):
    """While it is active, an embedding's padding row receives no gradient in any task.

    Under `torch.vmap`, torch masks the gradient of the padding row of the first task only.

    Example:
        >>> tables = torch.ones(2, 3, 1, requires_grad=True)
        >>> look_up = lambda table: F.embedding(torch.tensor([0, 1]), table, padding_idx=0)
        >>> with PaddedEmbedding():
        ...     rows = torch.func.vmap(look_up)(tables)
        >>> torch.autograd.grad(rows.sum(), tables)[0].squeeze(-1)
        tensor([[0., 1., 0.],
                [0., 1., 0.]])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.embedding:
            names, unpadded = ("input", "weight", "padding_idx"), None
        elif func is torch.embedding:
            names, unpadded = ("weight", "indices", "padding_idx"), -1
        else:
            return func(*args, **(kwargs or {}))
        given = {**dict(zip(names, args)), **(kwargs or {})}
        padding = given.pop("padding_idx", unpadded)
        weight, index = given.pop("weight"), given.pop("input" if func is F.embedding else "indices")
        first = (index, weight) if func is F.embedding else (weight, index)
        rows = func(*first, unpadded, *args[3:], **given)
        if padding == unpadded:
            return rows
        padding = padding + weight.shape[0] if padding < 0 else padding
        return torch.where((index == padding).unsqueeze(-1), rows.detach(), rows)


def own_forward(
    clone: nn.Module,
    slots: Slots,
    module: nn.Module,
    call: Call,
    updates: dict[str, Update],
    layouts: Layouts,
    visit: tuple[str, int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a leaf module's own forward with `W0 + Delta_t`; `MultiheadAttention` is such a module.

    Args:
        clone: a copy of the module with the class's own forward. slots: its slots.
        module: the leaf module, whose parameters are the current ones.
        updates: by name inside it.
        layouts: where the batch axes of its arguments and outputs are.
        visit: its name and which of its calls this is, the first two entries of a key of `layouts`.
        args, kwargs: as it was called.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    own = {name: parameters[name] + update.delta(call.rows) for name, update in updates.items()}
    parts = max(value.shape[0] for value in own.values())  # tasks, or rows where a seed is per input
    own = {name: value.repeat_interleave(parts // value.shape[0], 0) for name, value in own.items()}
    state = {**parameters, **dict(module.named_buffers(remove_duplicate=False))}
    shared = {name: state[name] for name in slots.first}

    values: dict[int | str, Any] = dict(enumerate(args))
    values.update(kwargs)
    mapped: dict[int | str, Tensor] = {}
    axes: dict[int | str, int] = {}
    for key, value in values.items():
        layout = layouts.get((*visit, key))
        axis = layout.locate(value, call.rows) if layout is not None and isinstance(value, Tensor) else None
        if axis is not None:
            mapped[key], axes[key] = torch.unflatten(value, axis, (parts, -1)), axis

    empty: list[bool] = []  # which outputs are None (attention's weights): vmap returns tensors only

    def one(own: dict[str, Tensor], mapped: dict[int | str, Tensor], which: Tensor) -> Any:
        full = {**values, **mapped}
        given = tuple(full[i] for i in range(len(args))), {key: full[key] for key in kwargs}
        call.part = (parts, which)
        filled = slots.filled({**shared, **own})
        output = torch.func.functional_call(clone, filled, *given, tie_weights=False)
        call.part = None
        if not isinstance(output, tuple):
            return output
        empty[:] = [value is None for value in output]
        return tuple(value for value in output if value is not None)

    each = torch.arange(parts, device=next(iter(own.values())).device)
    with PaddedEmbedding():
        result = torch.func.vmap(one, in_dims=(0, axes, 0), randomness="different")(own, mapped, each)

    def joined(value: Tensor, index: int) -> Tensor:
        """`(parts, ...)` to rows along the output's batch axis."""
        if not axes:
            return torch.cat([spread(output, call.rows // parts) for output in value])
        layout = layouts.get((*visit, ("output", index)))
        axis = 0 if layout is None or layout.axis is None else layout.axis
        return value.movedim(0, axis).flatten(axis, axis + 1)

    if isinstance(result, tuple):
        full = iter(result)
        return tuple(None if none else joined(next(full), index) for index, none in enumerate(empty))
    return joined(result, 0)

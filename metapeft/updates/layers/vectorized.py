"""Leaf modules of every other type: their own forward for each task, under `torch.func.vmap`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metapeft.updates.layers.call import Call, Holder, Update
from metapeft.updates.layers.layout import spread
from metapeft.updates.layers.nests import Argument, arguments, refilled, replaced, tensors
from metapeft.updates.layers.per_task import PerTask, own_rows, per_task
from metapeft.updates.layers.slots import Slots
from metapeft.updates.layers.task_by_task import each_task


def own_forward(
    clone: nn.Module,
    slots: Slots,
    module: nn.Module,
    call: Call,
    updates: dict[str, Update],
    holder: Holder,
    visit: tuple[str, int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a leaf module's own forward with `W0 + Delta_t`; `MultiheadAttention` is such a module.

    Args:
        clone: a copy of the module with the class's own forward. slots: its slots.
        module: the leaf module, whose parameters are the current ones.
        updates: by name inside it.
        holder: where the batch axes of its arguments and outputs are found.
        visit: its name and which of its calls this is, the first two entries of a key of the layouts.
        args, kwargs: as it was called.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    own = {name: parameters[name] + update.delta(call.rows) for name, update in updates.items()}
    parts = max(value.shape[0] for value in own.values())  # tasks, or rows where a seed is per input
    parts = parts if call.tracing is None else call.tracing.parts
    own = {name: value.repeat_interleave(parts // value.shape[0], 0) for name, value in own.items()}
    state = {**parameters, **dict(module.named_buffers(remove_duplicate=False))}
    shared = {name: state[name] for name in slots.first}

    values = arguments(args, kwargs)
    mapped: dict[Argument, Tensor] = {}
    axes: dict[Argument, int] = {}
    for key, value in values.items():
        if isinstance(value, PerTask):
            mapped[key], axes[key] = value.value, 0
            continue
        layout = holder.layouts.get((*visit, key))
        axis = layout.locate(value, call.rows, call.tracing is not None) if layout is not None else None
        if axis is not None:
            mapped[key], axes[key] = torch.unflatten(value, axis, (parts, -1)), axis

    given_back: list[Any] = []  # vmap returns tensors only

    def one(own: dict[str, Tensor], mapped: dict[Argument, Tensor], which: Tensor) -> Any:
        given = refilled(args, kwargs, {**values, **mapped})
        call.part = (parts, which)
        filled = slots.filled({**shared, **own})
        output = torch.func.functional_call(clone, filled, *given, tie_weights=False)
        call.part = None
        given_back[:] = [output]
        return tuple(tensors(output))

    each = torch.arange(parts, device=next(iter(own.values())).device)
    names, keys = list(own), list(mapped)

    def flat(*tensors: Tensor) -> Any:
        first, second = tensors[: len(names)], tensors[len(names) : -1]
        return one(dict(zip(names, first)), dict(zip(keys, second)), tensors[-1])

    result, in_turn = each_task(
        flat,
        [*own.values(), *mapped.values(), each],
        [*(0 for _ in own), *axes.values(), 0],
        visit[0] in holder.in_turn,
    )
    if in_turn:
        holder.in_turn.add(visit[0])

    def joined(value: Tensor, index: int) -> Tensor:
        """`(parts, ...)` to rows along the output's batch axis."""
        layout = holder.layouts.get((*visit, ("output", index)))
        if call.tracing is not None and (layout is None or layout.axis is None):
            return per_task(value, call.tracing)
        if not axes and layout is not None and layout.axis is not None:
            return own_rows(value, layout.axis)  # it was told how many
        if not axes:
            return torch.cat([spread(output, call.rows // parts) for output in value])
        axis = 0 if layout is None or layout.axis is None else layout.axis
        return value.movedim(0, axis).flatten(axis, axis + 1)

    found = iter([joined(value, index) for index, value in enumerate(result)])
    return replaced(given_back[0], lambda _: next(found))

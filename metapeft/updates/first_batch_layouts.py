"""What the first batch teaches of a backbone: where its leaf modules have their batch axes, and what has none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.base.machine.memory import is_out_of_memory
from metapeft.base.trees import mapped
from metapeft.updates.batched import BatchedBackbone
from metapeft.updates.layers.call import Call
from metapeft.updates.layers.kept_state import attributes, changed
from metapeft.updates.layers.layout import Shapes, compare
from metapeft.updates.layers.per_task import Operation, Tracing, steps

_log = logging.getLogger("metapeft")


def first_tasks(x: Any, count: int) -> Any:
    """The first tasks of an input; a task that is missing is the first one again."""
    return mapped(x, lambda value: value[[i if i < value.shape[0] else 0 for i in range(count)]])


def of_tasks(mask: Tensor | None, count: int) -> Tensor | None:
    """The same of a mask."""
    return None if mask is None else mask[[i if i < mask.shape[0] else 0 for i in range(count)]]


def learn_layouts(model: BatchedBackbone, x: Any, call: Call) -> tuple[Tensor, list[str]]:
    """Run one task and two without updates, note the batch axes.

    Returns: the output of two, and the parameters with an update whose layers the forward does not run.
    """
    shapes: list[Shapes] = []
    output, idle = torch.empty(0), []
    before = attributes(model.backbone)
    for count in (1, 2):
        run = Call(count, call.items, {}, call.reference, of_tasks(call.mask, count), shapes={})
        output = model.execute(first_tasks(x, count), run)
        if count == 1:
            model.holder.kept = changed(model.backbone, before)
            model.forget()
        shapes.append(run.shapes or {})
        idle = [name for name, users in model.users.items() if not any(run.visits[user] for user in users)]
    model.holder.layouts = compare(*shapes)
    if not output.isfinite().all():
        raise ValueError(
            "the backbone's output is not finite on a finite input: NaN or infinity in its weights?"
        )
    return output, idle


def learn_steps(model: BatchedBackbone, x: Any, call: Call) -> None:
    """Run one task and two without updates, note what is called on values without a batch axis.

    Raises:
        ValueError: such a value goes where it cannot be followed; a parameter that the user named is not read at all.
    """
    noted: list[list[Operation]] = []
    for count in (1, 2):
        run = Call(count, call.items, {}, call.reference, of_tasks(call.mask, count))
        run.tracing = Tracing(1, run.rows)
        try:
            model.execute(first_tasks(x, count), run)
        except (RuntimeError, IndexError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"{module_of(model.backbone, error)} reads a value that has no batch axis, and cannot be given one of "
                f"each task's own ({(str(error).splitlines() or [''])[0]}); leave {', '.join(model.loose[:5])} out of "
                "targets"
            ) from error
        noted.append(run.tracing.noted)
    model.holder.steps = steps(noted[0], noted[1], 2 * call.items)
    read = {
        which
        for step in noted[1]
        for source in step.sources
        if source
        for number, which in [source]
        if number < 0
    }
    unread = [name for number, name in enumerate(model.loose) if number not in read]
    named = [name for name in unread if model.sites[name].named]
    if named:
        raise ValueError(
            f"{', '.join(named[:5])}: the backbone's forward never runs the layer, nor reads its parameters, so an "
            "update there has no effect; leave it out of targets"
        )
    if unread:
        _log.warning(
            "the backbone's forward reads none of %s, so updates there have no effect; without them: attach(backbone, "
            '{%s, "all": format})',
            ", ".join(unread),
            ", ".join(f'"{name}": None' for name in unread),
        )


def module_of(backbone: nn.Module, error: BaseException) -> str:
    """The innermost module in whose forward an error was raised, for a message."""
    names: Mapping[int, str] = {id(module): name for name, module in backbone.named_modules()}
    found, trace = "the backbone", error.__traceback__
    while trace is not None:
        inside = trace.tb_frame.f_locals.get("self")
        name = names.get(id(inside), "")
        found = f"{name} ({type(inside).__name__})" if name else found
        trace = trace.tb_next
    return found

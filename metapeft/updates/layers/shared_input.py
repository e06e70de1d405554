"""Layers with an update whose input has no batch axis: each task has its own output, which is kept as such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.updates.layers import by_kind
from metapeft.updates.layers.call import Call, Update
from metapeft.updates.layers.layout import Layouts
from metapeft.updates.layers.nests import replaced, tensors
from metapeft.updates.layers.per_task import PerTask, Tracing, per_task, plain

#: what reads its first axis as rows, whatever comes after it
_ROWS_FIRST = (by_kind.convolution, by_kind.group_norm)


def noted(
    forward: Callable[..., Any],
    tracing: Tracing,
    layouts: Layouts,
    visit: tuple[str, int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A layer's plain forward, while a run is learnt; its outputs without a batch axis are each task's own.

    Args:
        visit: the layer's name, and which of its calls this is.
    """
    result = forward(*plain(args), **plain(kwargs))
    axes = iter([layouts.get((*visit, ("output", index))) for index, _ in enumerate(tensors(result))])

    def own(value: Tensor) -> Tensor:
        layout = next(axes)
        return per_task(value.unsqueeze(0), tracing) if layout is None or layout.axis is None else value

    return replaced(result, own)


def shared(
    run: by_kind.Run, module: nn.Module, call: Call, tracing: Tracing, updates: dict[str, Update], x: Tensor
) -> Tensor:
    """A layer of a common kind on what all inputs of a task share."""
    value = x.value if isinstance(x, PerTask) else x.unsqueeze(0).expand(tracing.parts, *x.shape)
    if run in _ROWS_FIRST:
        y = run(module, call, updates, value.flatten(0, 1))
        return per_task(torch.unflatten(y, 0, value.shape[:2]), tracing)
    return per_task(run(module, call, updates, value), tracing)

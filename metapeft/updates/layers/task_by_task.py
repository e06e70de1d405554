"""A function of each task's own tensors on all of them: under `torch.func.vmap`, or in turn where that cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metapeft.base.machine.memory import is_out_of_memory
from metapeft.updates.layers.vmap_gaps import VmapGaps

Mapped = Callable[..., tuple[Tensor, ...]]


def each_task(
    function: Mapped, tensors: Sequence[Tensor], axes: Sequence[int], in_turn: bool = False
) -> tuple[tuple[Tensor, ...], bool]:
    """What `function` gives for each task, stacked, `(T, ...)`, and whether they ran in turn.

    Args:
        tensors: `function` takes each without its task axis. axes: where that is. in_turn: not to try otherwise.

    Example:
        >>> each_task(lambda x: (x[x > 0].sum(),), [torch.tensor([[1.0, -1.0], [2.0, 3.0]])], [0])
        ((tensor([1., 5.]),), True)
    """
    if not in_turn:
        try:
            with VmapGaps(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                mapped = torch.func.vmap(function, in_dims=tuple(axes), randomness="different")
                return mapped(*tensors), False
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
    tasks = tensors[0].shape[axes[0]]
    with VmapGaps():
        found = [
            function(*(value.select(axis, task) for value, axis in zip(tensors, axes)))
            for task in range(tasks)
        ]
    return tuple(torch.stack(values) for values in zip(*found)), True

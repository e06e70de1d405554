"""The inner objective: on the batch of a step, with its gradients, and the checks of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from metapeft.base.errors import NumericalError
from metapeft.inner.solver import Bound, Tensors

Objective = Callable[..., Any]


class Batches:
    """The inner objective of step k, bound to its batch: `batches(k)(u, w)`.

    Args:
        inner: `inner(u, w)`, or `inner(u, w, batch)` when there is data.
        data: None; a list of batches, one a step; or anything else as the one batch of all steps.
        given: whether there is data at all, so that a batch may be None.
    """

    def __init__(self, inner: Objective | None, data: Any, given: bool) -> None:
        self.inner, self.data, self.given = inner, data, given

    def batch(self, k: int) -> Any:
        if isinstance(self.data, list):
            return self.data[min(k, len(self.data) - 1)]
        return self.data

    def __call__(self, k: int) -> Bound:
        if self.inner is None:
            raise ValueError("inner is None: this solver or method needs an inner objective")
        if not self.given:
            return self.inner
        inner, batch = self.inner, self.batch(k)
        return lambda u, w: inner(u, w, batch)

    @property
    def last(self) -> Bound:
        """The objective on the last batch, which implicit engines differentiate."""
        return self(len(self.data) - 1 if self.given and isinstance(self.data, list) else 0)

    def check(self, steps: int, repeat: bool, more: int = 0) -> None:
        """Refuse a list of batches whose length is not the number of steps; `repeat`: it may be shorter.

        `more`: so many have to follow those of the steps.
        """
        if more and not (self.given and isinstance(self.data, list) and len(self.data) == steps + more):
            found = f"a list of {len(self.data)}" if isinstance(self.data, list) else type(self.data).__name__
            raise ValueError(
                f"data: the inner level is {found if self.given else 'without data'}, but a list of {steps + more} "
                f"batches is needed: one for each of {steps} steps, and {more} more that the method takes"
            )
        if more or not (self.given and isinstance(self.data, list)):
            return
        count = len(self.data)
        if count == 0 or (not repeat and count != steps) or (repeat and count > max(steps, 1)):
            wanted = f"1 to {max(steps, 1)}" if repeat else str(steps)
            raise ValueError(
                f"data: the inner level has a list of {count} batches, one a step, but the solver makes "
                f"{steps} steps: give {wanted} of them (a single batch that is a list has to be a tuple)"
            )


def check_value(value: Any, w: Mapping[str, Tensor], task_axis: bool, level: str) -> None:
    """Refuse an objective that does not return one number (a task)."""
    if not isinstance(value, Tensor):
        raise ValueError(f"the {level} objective has to return a tensor, it returned {type(value).__name__}")
    if not task_axis:
        if value.ndim:
            raise ValueError(
                f"the {level} objective returned shape {tuple(value.shape)}: without a task axis it has to "
                "be one number, shape (); take the mean, or say task_axis=True if there is one value a task"
            )
        return
    if value.ndim != 1:
        raise ValueError(
            f"the {level} objective returned shape {tuple(value.shape)}: task_axis=True wants (T,)"
        )
    for name, variable in w.items():
        if variable.ndim == 0 or variable.shape[0] != value.shape[0]:
            raise ValueError(
                f"the {level} objective returned {value.shape[0]} values but w[{name!r}] has shape "
                f"{tuple(variable.shape)}: with task_axis=True every inner variable has a leading axis of the "
                "same T tasks (expand a start that all tasks share)"
            )


def inner_gradients(
    inner: Bound, u: Mapping[str, Tensor], w: Tensors, task_axis: bool, create_graph: bool
) -> tuple[Tensor, Tensors]:
    """Inner values, detached, and the partial gradient of their sum for all of w at once."""
    value = inner(u, w)
    check_value(value, w, task_axis, "inner")
    total = value.sum() if task_axis else value
    found: Iterable[Tensor | None] = ()
    if total.requires_grad:
        found = torch.autograd.grad(total, tuple(w.values()), create_graph=create_graph, allow_unused=True)
    grads = {name: grad for name, grad in zip(w, found) if grad is not None}
    if not grads:
        raise ValueError(
            "the inner objective does not depend on the inner variables "
            f"({', '.join(w)}): it reads other tensors, or detaches them"
        )
    return value.detach(), {name: grads[name] if name in grads else torch.zeros_like(w[name]) for name in w}


def check_inner_values(values: list[Tensor]) -> None:
    """Raise for the first step whose inner objective is not finite."""
    if not values:
        return
    finite = torch.stack(values).isfinite()
    if not bool(finite.all()):
        first = (~finite).nonzero()[0].tolist()
        where = f"step {first[0]}" + (f" of task {first[1]}" if len(first) > 1 else "")
        found = values[first[0]].flatten()[first[1] if len(first) > 1 else 0].item()
        raise NumericalError(
            f"the inner objective is {found} at inner {where}: the inner rate is too large for this problem, "
            "or the objective is not finite at the start (check the data for NaN)"
        )

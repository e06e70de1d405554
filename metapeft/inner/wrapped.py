"""A solver inside another one, which changes part of what it does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from metapeft.inner.solver import Bound, Solver, Tensors


class Wrapped(Solver):
    """Base: does what the solver inside does.

    Args:
        solver: the solver inside.

    Example:
        >>> from metapeft.inner import SGD
        >>> Wrapped(SGD(steps=3, lr=0.1))
        SGD(steps=3, lr=0.1, rates=None, proximal=0.0, weight_decay=0.0)
    """

    def __init__(self, solver: Solver) -> None:
        self.solver, self.steps = solver, solver.steps
        self.reads, self.differentiable = solver.reads, solver.differentiable  # type: ignore[misc]

    @property
    def anchored(self) -> bool:
        return self.solver.anchored

    def init(self, u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> dict[str, Any]:
        return self.solver.init(u, w)

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        return self.solver.step(k, u, w, grads, state)

    def kept(self, state: dict[str, Any]) -> dict[str, Any]:
        return self.solver.kept(state)

    def objective(
        self, inner: Bound, u: Mapping[str, Tensor], w: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> Tensor:
        return self.solver.objective(inner, u, w, start)

    def with_task_axis(self, task_axis: bool) -> Self:
        other = copy.copy(self)
        other.solver = self.solver.with_task_axis(task_axis)
        return other

    def settings(self) -> dict[str, Any]:
        return self.solver.settings()

    def __repr__(self) -> str:
        return repr(self.solver)

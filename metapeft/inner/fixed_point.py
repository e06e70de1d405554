"""Solvers from a user's own functions: a step, and a fixed-point map."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.inner.solver import Solver, Tensors


def checked(found: Any, w: Mapping[str, Tensor], what: str) -> Tensors:
    """What a user's function returned, as tensors of their own; refused unless named and shaped as w."""
    if not isinstance(found, Mapping) or set(found) != set(w):
        names = sorted(found) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(
            f"{what} has to return a dict with the inner variables {sorted(w)}, it returned {names}"
        )
    for name, value in w.items():
        if not isinstance(found[name], Tensor) or found[name].shape != value.shape:
            raise ValueError(f"{what} has to return {name!r} as a tensor of shape {tuple(value.shape)}")
    return {name: found[name].view_as(found[name]) for name in w}


@dataclass(frozen=True, repr=False)
class Step(Solver):
    """A user's own step, repeated: `w_{k+1} = function(u, w_k, grad_w f(u, w_k))`.

    Args:
        function: `function(u, w, grads) -> w`, differentiable in all three, nothing changed in place.
        steps: number of steps.

    Raises:
        ValueError: a function that returns other names or shapes than those of w.

    Example:
        >>> import torch
        >>> from metapeft.inner import solve
        >>> sign = Step(lambda u, w, grads: {name: w[name] - 0.5 * grads[name].sign() for name in w}, steps=3)
        >>> solve(lambda u, w: w["x"].square(), {}, {"x": torch.tensor(2.0)}, sign)
        {'x': tensor(0.5000)}
    """

    function: Callable[[Mapping[str, Tensor], Tensors, Tensors], Mapping[str, Tensor]]
    steps: int = 1

    def __post_init__(self) -> None:
        whole(0, steps=self.steps)

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        return checked(self.function(u, w, grads), w, "the step"), state


@dataclass(frozen=True, repr=False)
class FixedPoint(Solver):
    """A fixed-point map, iterated: `w_{k+1} = function(u, w_k)`; it needs no inner gradients.

    Args:
        function: `function(u, w) -> w`, or `function(u, w, batch) -> w` when there is data.
        steps: number of iterations.

    Raises:
        ValueError: a function that returns other names or shapes than those of w.

    Example:
        >>> import torch
        >>> from metapeft.inner import solve
        >>> newton = FixedPoint(lambda u, w: {"x": (w["x"] + u["c"] / w["x"]) / 2}, steps=5)
        >>> solve(None, {"c": torch.tensor(2.0)}, {"x": torch.tensor(1.0)}, newton)
        {'x': tensor(1.4142)}
    """

    function: Callable[..., Mapping[str, Tensor]]
    steps: int = 1
    reads: ClassVar[Literal["gradients", "batch"]] = "batch"

    def __post_init__(self) -> None:
        whole(0, steps=self.steps)

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        found = self.function(u, w) if grads is None else self.function(u, w, grads)
        return checked(found, w, "the fixed-point map"), state


def as_solver(function: Any) -> Solver:
    """A bare callable as a solver of one step: `step(u, w, grads) -> w`, or a whole solve `solve(u, w) -> w`.

    Example:
        >>> as_solver(lambda u, w, grads: w).reads, as_solver(lambda u, w: w).reads
        ('gradients', 'batch')
    """
    if not callable(function) or isinstance(function, type):
        raise ValueError(
            f"solver={function!r} has to be an inner solver, such as mp.inner.SGD(steps=5, lr=0.1)"
        )
    parameters = inspect.signature(function).parameters.values()
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) == 3:
        return Step(function)
    if len(needed) == 2:
        return FixedPoint(function)
    raise ValueError(
        f"solver={function!r} takes {len(needed)} arguments: a bare callable is a step (u, w, grads) -> w or "
        "a whole solve (u, w) -> w"
    )

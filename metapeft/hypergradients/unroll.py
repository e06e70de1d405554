"""Reverse mode through all inner steps, or through the last of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.hypergradients.checked_result import finish, gradient, outer_value, refuse_rigid_solver
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.loop import plain_steps
from metapeft.inner.objective import inner_gradients
from metapeft.inner.solver import Solver, Tensors
from metapeft.inner.variables import constants, distinct, leaf_tensors, starting_point


def unrolled_steps(
    problem: Problem, u: Tensors, w: Tensors, state: dict[str, Any], first: int, last: int
) -> tuple[Tensors, list[Tensor]]:
    """`w_last` from `w_first` with the whole graph, and the inner values on the way."""
    solver, batches, inner_values = problem.solver, problem.batches, []
    for k in range(first, last):
        if solver.reads == "batch":
            given = batches.batch(k)
        else:
            value, given = inner_gradients(batches(k), u, w, problem.task_axis, create_graph=True)
            inner_values.append(value)
        w, state = solver.step(k, u, w, given, state)
    return w, inner_values


@dataclass(frozen=True)
class Unroll(Engine):
    """`d/du mean_t F_t(u, w_K(u))` by reverse mode through the K inner steps: exact at the returned point.

    Time: K inner gradients and about twice that backwards; memory grows linearly with K.
    Source: Maclaurin et al. 2015; MAML (Finn et al. 2017), eq. 1.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> half = lambda u, w: w["x"].square() / 2
        >>> t, start = torch.tensor(2.0), lambda u: {"x": u["t"]}
        >>> hypergradient(half, half, {"t": t}, start, SGD(1, 0.5), Unroll()).grads
        {'t': tensor(0.5000)}
    """

    def compute(self, problem: Problem) -> Result:
        solver, u = problem.solver, leaf_tensors(problem.u)
        refuse_rigid_solver(self, solver)
        w = distinct(starting_point(problem.w0, u))
        w, inner_values = unrolled_steps(problem, u, w, solver.init(u, w), 0, solver.steps)
        values, aux = outer_value(problem, u, w)
        return finish(self, problem, u, w, values, gradient(values, tuple(u.values())), aux, inner_values)


@dataclass(frozen=True)
class Truncated(Engine):
    """`d/du F(u, w_K)` by reverse mode through the last `window` steps, `w_{K-window}` taken as a constant.

    It equals `Unroll` when the window covers all steps; otherwise it is an approximation: starts receive no
    gradient, and rates of the steps before the window receive 0. Time: K inner gradients, and about twice
    `window` of them backwards; memory of `window` steps. Source: Shaban et al. 2019, section 3.

    Args:
        window: number of steps that are differentiated, 1 or more.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> outer, inner = lambda u, w: w["x"], lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> c, x = torch.tensor(3.0), torch.tensor(0.0)
        >>> hypergradient(outer, inner, {"c": c}, {"x": x}, SGD(9, 0.5), Truncated(2)).grads
        {'c': tensor(0.7500)}
    """

    window: int = 5

    def __post_init__(self) -> None:
        whole(window=self.window)

    def compute(self, problem: Problem) -> Result:
        solver, u = problem.solver, leaf_tensors(problem.u)
        refuse_rigid_solver(self, solver)
        first = max(solver.steps - self.window, 0)
        if first == 0:
            return Unroll().compute(problem)
        with torch.no_grad():
            start = starting_point(problem.w0, constants(u))
        path = plain_steps(problem.batches, u, start, solver, problem.task_axis, last=first)
        w, inner_values = unrolled_steps(
            problem, u, leaf_tensors(path.w[-1]), path.states[-1], first, solver.steps
        )
        values, aux = outer_value(problem, u, w)
        grads = gradient(values, tuple(u.values()))
        return finish(self, problem, u, w, values, grads, aux, path.values + inner_values)

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        if solver is None or solver.steps <= self.window:
            return {}
        return {
            "starts": f"only the last {self.window} of {solver.steps} inner steps are differentiated, so the "
            'starts receive no gradient; use a window that covers all steps, or "recompute" to save memory.'
        }


def reached(problem: Problem, u: Mapping[str, Tensor]) -> dict[str, bool]:
    """Which outer variables the unrolled value depends on at all, found with at most two steps."""
    fresh, steps = leaf_tensors(u), min(problem.solver.steps, 2)
    w = distinct(starting_point(problem.w0, fresh))
    w, _ = unrolled_steps(problem, fresh, w, problem.solver.init(fresh, w), 0, steps)
    values, _ = outer_value(problem, fresh, w)
    found = gradient(values, tuple(fresh.values()))
    return {name: grad is not None for name, grad in zip(fresh, found)}

"""The displacement of the start."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metapeft.hypergradients.checked_result import finish, outer_value
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.hypergradients.recompute import pull_back
from metapeft.inner.loop import plain_steps
from metapeft.inner.solver import Solver
from metapeft.inner.variables import constants, leaf_tensors, starting_point


@dataclass(frozen=True)
class Reptile(Engine):
    """`mean_t (theta_0 - theta_K)`, undivided, where theta_0 is the outer variable; F is not differentiated.

    Where the start is a function `w0(u)`, the displacement is pulled back through it: an outer variable that
    all tasks start from receives the mean, and `w0 = lambda u: {"delta": u["W"] - u["W"].detach()}` gives the
    outer weight under a zero start `-mean_t delta_K`. What the start does not read is refused.
    Time: K inner gradients; memory of one step. Source: Nichol et al. 2018, algorithm 2.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> half = lambda u, w: w["x"].square() / 2
        >>> t, start = torch.tensor(2.0), lambda u: {"x": u["t"]}
        >>> hypergradient(half, half, {"t": t}, start, SGD(2, 0.5), Reptile()).grads  # 2 - 2 / 4
        {'t': tensor(1.5000)}
    """

    def compute(self, problem: Problem) -> Result:
        u = leaf_tensors(problem.u)
        start = starting_point(problem.w0, u)
        path = plain_steps(problem.batches, u, start, problem.solver, problem.task_axis)
        w = path.w[-1]
        with torch.no_grad():
            values, aux = outer_value(problem, constants(u), w)
            tasks = values.numel()
            moved = [(start[name].detach() - w[name]) / tasks for name in start]
        grads = pull_back(list(start.values()), [*moved], list(u.values()))
        return finish(self, problem, u, w, values, grads, aux, path.values)

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        return {"rates": "Reptile moves the start only, so the inner rates receive no gradient."}

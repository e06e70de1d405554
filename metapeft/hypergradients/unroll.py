"""Reverse mode through all inner steps."""

from __future__ import annotations

from dataclasses import dataclass

from metapeft.hypergradients.pieces import finish, gradient, outer_value, refuse_rigid_solver
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.loop import inner_gradients, leaves, starting_point
from metapeft.inner.solver import distinct


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
        solver, batches, u = problem.solver, problem.batches, leaves(problem.u)
        refuse_rigid_solver(self, solver)
        w = distinct(starting_point(problem.w0, u))
        state, inner_values = solver.init(u, w), []
        for k in range(solver.steps):
            if solver.reads == "batch":
                given = batches.batch(k)
            else:
                value, given = inner_gradients(batches(k), u, w, problem.task_axis, create_graph=True)
                inner_values.append(value)
            w, state = solver.step(k, u, w, given, state)
        values, aux = outer_value(problem, u, w)
        return finish(self, problem, u, w, values, gradient(values, tuple(u.values())), aux, inner_values)

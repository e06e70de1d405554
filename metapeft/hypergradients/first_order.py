"""The inner gradients as constants."""

from __future__ import annotations

from dataclasses import dataclass

from metapeft.hypergradients.checked_result import (
    finish,
    gradient,
    outer_value,
    refuse_batch_solver,
    refuse_rigid_solver,
)
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.objective import inner_gradients
from metapeft.inner.variables import constants, distinct, leaf_tensors, starting_point


@dataclass(frozen=True)
class FirstOrder(Engine):
    """`d/du F(u, w_K)` where each `grad_w f(u, w_k)` counts as a constant.

    Starts, rates, the solver's own terms (proximal, decay) and whatever F reaches directly receive gradients;
    what enters only the inner objective does not and is refused. It is exact if f is linear in w and free of u.
    Time: K inner gradients and one outer gradient; memory of one inner step.
    Source: first-order MAML (Finn et al. 2017, section 5.2; Nichol et al. 2018, section 5).

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> half = lambda u, w: w["x"].square() / 2
        >>> start = lambda u: {"x": u["t"]}
        >>> hypergradient(half, half, {"t": torch.tensor(2.0)}, start, SGD(1, 0.5), FirstOrder()).grads
        {'t': tensor(1.)}
    """

    def compute(self, problem: Problem) -> Result:
        solver, batches, u = problem.solver, problem.batches, leaf_tensors(problem.u)
        refuse_batch_solver(self, solver)
        refuse_rigid_solver(self, solver)
        fixed = constants(u)
        w = distinct(starting_point(problem.w0, u))
        state, inner_values = solver.init(u, w), []
        for k in range(solver.steps):
            value, grads = inner_gradients(
                batches(k), fixed, leaf_tensors(w), problem.task_axis, create_graph=False
            )
            inner_values.append(value)
            w, state = solver.step(k, u, w, grads, state)
        values, aux = outer_value(problem, u, w)
        return finish(self, problem, u, w, values, gradient(values, tuple(u.values())), aux, inner_values)

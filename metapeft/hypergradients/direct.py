"""Methods whose inner variables are what w0 gives: no inner loop, or one in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from metapeft.hypergradients.checked_result import finish, gradient, outer_value
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.solver import Solver
from metapeft.inner.variables import leaf_tensors, starting_point


@dataclass(frozen=True)
class Direct(Engine):
    """`d/du F(u, w_0(u))`: no inner loop, so it is exact, in one forward and one backward.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> square = lambda u, w: w["x"].square()
        >>> t, start = torch.tensor(3.0), lambda u: {"x": u["t"]}
        >>> hypergradient(square, None, {"t": t}, start, method="direct").grads
        {'t': tensor(6.)}
    """

    needs_inner = False

    def compute(self, problem: Problem) -> Result:
        if problem.solver is not None:
            raise ValueError(f'solver={problem.solver!r} is not used by method="direct": leave it out')
        u = leaf_tensors(problem.u)
        w = starting_point(problem.w0, u, may_be_empty=True)
        values, aux = outer_value(problem, u, w)
        return finish(self, problem, u, w, values, gradient(values, tuple(u.values())), aux, [])

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        return {"rates": "there is no inner loop, so there are no inner rates."}

"""One inner step, with the second derivative as a central difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.base.arguments import number
from metapeft.hypergradients.checked_result import finish, gradient, outer_value, refuse_batch_solver
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.hypergradients.recompute import added, pull_back
from metapeft.inner.loop import plain_steps
from metapeft.inner.objective import inner_gradients
from metapeft.inner.solver import Solver, Tensors
from metapeft.inner.variables import constants, leaf_tensors, starting_point


def _norms(vector: Mapping[str, Tensor], tasks: int) -> Tensor:
    """Norm over all entries of each task, `(T,)`."""
    rows = torch.cat([value.reshape(tasks, -1) for value in vector.values()], dim=1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def central_difference(
    problem: Problem,
    u: Tensors,
    w: Mapping[str, Tensor],
    vector: Tensors,
    epsilon: float,
    wanted: Sequence[str],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """`(grad f(u, w + h v) - grad f(u, w - h v)) / (2 h)` in u and the wanted w; `h = epsilon / ||v||`."""
    tasks = next(iter(w.values())).shape[0] if problem.task_axis else 1
    norm = _norms(vector, tasks)
    h = torch.where(norm > 0, epsilon / torch.where(norm > 0, norm, 1.0), 0.0)
    weight = torch.where(norm > 0, norm / (2 * epsilon), 0.0)
    if not problem.task_axis:
        h, weight = h[0], weight[0]
    total: list[Tensor | None] = [None] * (len(u) + len(wanted))
    for sign in (1, -1):
        step = {name: h.reshape(h.shape + (1,) * (v.ndim - h.ndim)) * v for name, v in vector.items()}
        at = leaf_tensors({name: w[name] + sign * step[name] for name in w})
        fresh = leaf_tensors(u)
        value = problem.batches.last(fresh, at)
        inputs = [*fresh.values(), *(at[name] for name in wanted)]
        total = added(total, pull_back([value], [sign * weight], inputs))
    return total[: len(u)], total[len(u) :]


@dataclass(frozen=True)
class FiniteDifference(Engine):
    """One inner step unrolled, its second derivatives by central differences (DARTS, eq. 7 and 8).

    With `w' = w - lr grad_w f(u, w)`, `v = grad_w' F(u, w')`, `h = epsilon / ||v||`, a task its own h:
    `partial_u F(u, w') - lr (grad_u f(u, w + h v) - grad_u f(u, w - h v)) / (2 h)`, and starts and rates
    likewise. The rate is the step's true one, whatever the solver. The error against `Unroll` with one step is
    O(h^2), and 0 for f quadratic in w. Time: three inner gradients, one outer; memory of one step. Source: Liu
    et al. 2019.

    Args:
        epsilon: size of the displacement in w.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> outer, inner = lambda u, w: w["x"], lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> c, x = torch.tensor(3.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
        >>> found = hypergradient(outer, inner, {"c": c}, {"x": x}, SGD(1, 0.5), FiniteDifference())
        >>> found.grads["c"].round(decimals=9)
        tensor(0.5000, dtype=torch.float64)
    """

    epsilon: float = 0.01

    def __post_init__(self) -> None:
        number(above=True, epsilon=self.epsilon)

    def compute(self, problem: Problem) -> Result:
        solver, u = problem.solver, leaf_tensors(problem.u)
        refuse_batch_solver(self, solver)
        if solver.steps > 1:
            raise ValueError(
                f'method="finite-difference" is about one inner step, the solver makes {solver.steps}: use '
                '"unroll" or "recompute", or SGD(steps=1, ...)'
            )
        origin = starting_point(problem.w0, u)
        start = leaf_tensors(origin)
        state, inner_values, slope, w = solver.init(u, start), [], {}, start
        if solver.steps:
            value, grads = inner_gradients(
                problem.batches(0), constants(u), leaf_tensors(start), problem.task_axis, create_graph=False
            )
            inner_values, slope = [value], leaf_tensors(grads)
            w, _ = solver.step(0, u, start, slope, state)
        values, aux = outer_value(problem, u, w)
        found = gradient(values, [*u.values(), *start.values(), *slope.values()])
        own, rest = found[: len(u)], found[len(u) :]
        grads_u, starts, through = own, rest[: len(start)], rest[len(start) :]
        if slope:
            vector = {
                name: torch.zeros_like(slope[name]) if v is None else v for name, v in zip(slope, through)
            }
            moved, shifted = central_difference(
                problem, u, constants(start), vector, self.epsilon, list(start)
            )
            grads_u, starts = added(grads_u, moved), added(starts, shifted)
        grads_u = added(grads_u, pull_back(list(origin.values()), starts, list(u.values())))
        return finish(self, problem, u, w, values, grads_u, aux, inner_values)


@dataclass(frozen=True)
class AutoLoRA(Engine):
    """AutoLoRA's published code: the difference is taken around the adapted point, with rate 1.

    `partial_u F(u, w') - (grad_u f(u, w' + h v) - grad_u f(u, w' - h v)) / (2 h)`, where w' is the adapted
    point, `v = grad_w' F(u, w')` and `h = epsilon / ||v||`, a task its own h. It is not the gradient of
    what the inner step does (for that: `FiniteDifference`), but what the published results were obtained with;
    `log["note"]` says so. Time: K + 2 inner gradients, one outer; memory of one step. Source: Zhang et al.
    2024, and its code.

    Args:
        epsilon: size of the displacement in w.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> outer, inner = lambda u, w: w["x"], lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> c, x = torch.tensor(3.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
        >>> found = hypergradient(outer, inner, {"c": c}, {"x": x}, SGD(1, 0.5), AutoLoRA())
        >>> found.grads["c"].round(decimals=9)
        tensor(1., dtype=torch.float64)
    """

    epsilon: float = 0.01
    repeats_batches = True

    def __post_init__(self) -> None:
        number(above=True, epsilon=self.epsilon)

    def compute(self, problem: Problem) -> Result:
        u = leaf_tensors(problem.u)
        with torch.no_grad():
            start = starting_point(problem.w0, constants(u))
        path = plain_steps(problem.batches, u, start, problem.solver, problem.task_axis)
        w = leaf_tensors(path.w[-1])
        values, aux = outer_value(problem, u, w)
        found = gradient(values, [*u.values(), *w.values()])
        vector = {n: torch.zeros_like(w[n]) if v is None else v for n, v in zip(w, found[len(u) :])}
        moved, _ = central_difference(problem, u, constants(w), vector, self.epsilon, [])
        grads = added(found[: len(u)], [None if part is None else -part for part in moved])
        note = "autolora: central difference around the adapted point, inner rate taken as 1, as in its code"
        return finish(self, problem, u, w, values, grads, aux, path.values, note=note)

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        return {
            "starts": "AutoLoRA's formula is about the adapted point, so the starts receive no gradient; use "
            '"finite-difference" or "unroll".',
            "rates": "AutoLoRA's formula takes the inner rate as 1, so the inner rates receive no gradient; use "
            '"finite-difference" or "unroll".',
        }

"""What the implicit engines share: the linear system at the returned point, and what it gives for u."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metapeft.hypergradients.checked_result import check_finite, finish, gradient, outer_value
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.loop import plain_steps
from metapeft.inner.objective import check_value
from metapeft.inner.solver import Solver, Tensors
from metapeft.inner.variables import constants, leaf_tensors, starting_point


class NotConverged(UserWarning):
    """The inner solver has not reached a stationary point, or a series has not converged."""


class IndefiniteHessian(UserWarning):
    """The inner Hessian has a negative eigenvalue: the returned point is no minimum."""


@dataclass(frozen=True)
class System:
    """`(H + damping I) q = g`, one system a task; rows are tasks (one row without a task axis).

    Args:
        w: the point, name -> leaf tensor with the graph of `slope`.
        slope: gradient of the solver's objective there, with its graph.
        damping: added to the diagonal.
        tasks: number of rows T.
        fresh: the slope on the j-th of the inner batches that follow those of the steps.
    """

    w: Tensors
    slope: Tensors
    damping: float
    tasks: int
    fresh: Callable[[int], Tensors] | None = None

    def rows(self, values: Mapping[str, Tensor]) -> Tensor:
        """Name -> tensor as one matrix `(T, n)`."""
        return torch.cat([values[name].reshape(self.tasks, -1) for name in self.w], dim=1)

    def named(self, matrix: Tensor) -> Tensors:
        """A matrix `(T, n)` as name -> tensor."""
        parts = torch.split(matrix, [value.numel() // self.tasks for value in self.w.values()], dim=1)
        return {
            name: part.reshape(value.shape).to(value.dtype)
            for part, (name, value) in zip(parts, self.w.items())
        }

    def hessian_product(self, vector: Tensor) -> Tensor:
        """`H v + damping v` for all tasks at once, `(T, n)` -> `(T, n)`: one second backward."""
        named = self.named(vector)
        curved = [name for name, slope in self.slope.items() if slope.requires_grad]
        if not curved:
            return self.damping * vector
        found = torch.autograd.grad(
            [self.slope[name] for name in curved],
            tuple(self.w.values()),
            [named[name] for name in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        product = self.rows(dict(zip(self.w, found)))
        return product.add(vector, alpha=self.damping) if self.damping else product

    def mixed_product(self, u: Tensors, q: Tensor) -> list[Tensor | None]:
        """`q^T d^2 phi / (dw du)`, None where phi's gradient does not depend on an outer variable; the last product."""
        named = self.named(q)
        curved = [name for name, slope in self.slope.items() if slope.requires_grad]
        if not curved:
            return [None] * len(u)
        slopes, weights = [self.slope[name] for name in curved], [named[name] for name in curved]
        return list(torch.autograd.grad(slopes, tuple(u.values()), weights, allow_unused=True))


@dataclass(frozen=True)
class Solution:
    """`q` `(T, n)`, its residual `||g - (H + damping I) q|| / ||g||` `(T,)`, and notes for the log."""

    q: Tensor
    residual: Tensor
    log: dict[str, Any] = field(default_factory=dict)


def relative(residual: Tensor, g: Tensor) -> Tensor:
    """`||residual|| / ||g||` of each row; 0 where g is 0."""
    size = g.norm(dim=1)
    return torch.where(size > 0, residual.norm(dim=1) / size.clamp_min(torch.finfo(g.dtype).tiny), 0.0)


def slope_of(problem: Problem, u: Tensors, w: Tensors, start: Tensors, batch: int | None = None) -> Tensors:
    """Gradient in w of what the solver minimises, with its graph; on an inner batch, None for the last."""
    batches = problem.batches
    inner = batches.last if batch is None else batches(batch)
    value = problem.solver.objective(inner, u, w, start)
    check_value(value, w, problem.task_axis, "inner")
    if not value.requires_grad:
        raise ValueError(f"the inner objective does not depend on the inner variables ({', '.join(w)})")
    found = torch.autograd.grad(
        value.sum(), tuple(w.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(w, found))


def _slope_after(problem: Problem, u: Tensors, w: Tensors, start: Tensors, place: int) -> Tensors:
    return slope_of(problem, u, w, start, problem.solver.steps + place)


def less(direct: list[Tensor | None], mixed: list[Tensor | None]) -> list[Tensor | None]:
    """`direct - mixed`; None is 0, and stays None where both are."""
    return [d if m is None else -m if d is None else d - m for d, m in zip(direct, mixed)]


@dataclass(frozen=True)
class Implicit(Engine):
    """Base: `partial_u F - q^T d^2 phi / (dw du)`, `q` solving `(H + damping I) q = partial_w F` at `w_K`.

    `phi` is the solver's own objective (with its proximal and decay terms), `H` its Hessian in w. This is the
    implicit-function formula; it is the derivative of F at the inner solution where w_K is stationary and the
    linear solve exact. Subclasses write `solve`.
    """

    repeats_batches = True

    @property
    def stochastic(self) -> bool:
        """Whether batches differ, so that w_K is stationary for none of them."""
        return False

    def solve(self, system: System, g: Tensor) -> Solution:
        """Solve for all tasks."""
        raise NotImplementedError

    def system_damping(self) -> float:
        return 0.0

    def compute(self, problem: Problem) -> Result:
        solver, u = problem.solver, leaf_tensors(problem.u)
        start = starting_point(problem.w0, u) if solver.anchored else None
        if start is None:
            with torch.no_grad():
                start = starting_point(problem.w0, constants(u))
        path = plain_steps(problem.batches, u, start, solver, problem.task_axis)
        w = leaf_tensors(path.w[-1])
        values, aux = outer_value(problem, u, w)
        found = gradient(values, [*u.values(), *w.values()])
        direct = found[: len(u)]
        slope = slope_of(problem, u, w, start)
        check_finite(values, slope, path.values)
        tasks = values.numel()
        fresh = partial(_slope_after, problem, u, w, start)
        system = System(w, slope, self.system_damping(), tasks, fresh)
        g = system.rows({n: torch.zeros_like(w[n]) if v is None else v for n, v in zip(w, found[len(u) :])})
        stationarity = self._check_stationary(problem, system, u, start, path.slope)
        solution = self.solve(system, g)
        grads = less(direct, system.mixed_product(u, solution.q))
        residual = solution.residual if problem.task_axis else solution.residual[0]
        log = {"stationarity": stationarity, "solution": system.named(solution.q), **solution.log}
        return finish(self, problem, u, w, values, grads, aux, path.values, residual, **log)

    def _check_stationary(
        self, problem: Problem, system: System, u: Tensors, start: Tensors, first: Tensors | None
    ) -> Tensor:
        """Norm of phi's gradient at w_K over that at the start, `()` or `(T,)`; warns unless small."""
        if first is None:
            fixed = constants(start)
            first = slope_of(problem, constants(u), leaf_tensors(fixed), fixed)
        norm = system.rows(system.slope).detach().norm(dim=1)
        at_start = system.rows(first).detach().norm(dim=1)
        size = system.rows(system.w).detach().norm(dim=1).clamp_min(1.0)
        floor = torch.finfo(norm.dtype).eps ** 0.5 * size
        open_tasks = (norm > floor) & (norm > 1e-3 * at_start)
        if bool(open_tasks.any()) and not self.stochastic:
            tasks = f" in task(s) {open_tasks.nonzero().flatten().tolist()}" if problem.task_axis else ""
            warnings.warn(
                f"the inner solver has not converged{tasks}: the gradient norm of its objective is "
                f"{norm[open_tasks].max().item():.3g}, at the start it was "
                f"{at_start[open_tasks].max().item():.3g}. The implicit formula is evaluated at the returned "
                "point, where it is an approximation: take more inner steps, a larger rate or a stronger "
                "proximal term, or differentiate the steps (unroll).",
                NotConverged,
                stacklevel=4,
            )
        ratio = torch.where(at_start > 0, norm / at_start.clamp_min(torch.finfo(norm.dtype).tiny), norm)
        return ratio if problem.task_axis else ratio[0]

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        found = {
            "rates": "a stationary point does not depend on the rates that led to it, so the inner rates receive "
            'no gradient; use "unroll", "recompute" or "forward".'
        }
        if solver is None or not solver.anchored:
            found["starts"] = (
                "a stationary point does not depend on the start that led to it, so the starts receive no "
                'gradient; give the solver a proximal term (iMAML), or use "unroll".'
            )
        return found

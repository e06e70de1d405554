"""Implicit differentiation of a fixed point of the step itself, whatever map it is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metapeft.base.arguments import number, whole
from metapeft.base.errors import NumericalError
from metapeft.hypergradients.checked_result import (
    check_finite,
    finish,
    gradient,
    outer_value,
    refuse_rigid_solver,
)
from metapeft.hypergradients.implicit import Implicit, NotConverged, System, relative
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.hypergradients.transposed import conjugate_normal, gmres, neumann
from metapeft.inner.loop import plain_steps
from metapeft.inner.objective import inner_gradients
from metapeft.inner.solver import Solver, Tensors
from metapeft.inner.variables import constants, leaf_tensors, starting_point

Linear = Literal["gmres", "normal", "neumann"]


@dataclass(frozen=True)
class FixedPointImplicit(Engine):
    """`partial_u F + q^T dT/du` at `w_K`, with `(I - dT/dw)^T q = partial_w F`, for the solver's step `w <- T(u, w)`.

    It is the derivative of F at a fixed point of T: of gradient steps, where it is the formula of `CG` with the true
    rate, of proximal and projected steps, of a map of one's own. The system is in general not symmetric. It is exact
    where w_K is a fixed point, T is differentiable there and the linear solve is exact.
    Time: K inner steps, one step with its graph, and a product with `dT/dw` an iteration (`"normal"`: two); memory of
    one step, and for `"gmres"` of one vector an iteration.
    Source: Christianson 1994; jaxopt's `custom_fixed_point` (Blondel et al. 2022, arXiv 2105.15183), section 2.

    Args:
        linear: `"gmres"`: the smallest residual among all of so many products; `"normal"`: conjugate gradients on
            `(I - J)(I - J)^T q = (I - J) g`; `"neumann"`: `q = sum_{j<iterations} (J^T)^j g`, which converges where the
            spectral radius of J is below 1.
        iterations: at most so many.
        tolerance: relative residual to stop at; None: 1e-10 in float64, else 1e-5.

    Raises:
        ValueError: a solver that keeps a state from step to step (momentum, Adam), whose step is no map of w alone.
        NumericalError: a product that is not finite, or a solve that gains nothing.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import FixedPoint
        >>> newton = FixedPoint(lambda u, w: {"x": (w["x"] + u["c"] / w["x"]) / 2}, steps=6)
        >>> outer, c = lambda u, w: w["x"], torch.tensor(4.0)
        >>> hypergradient(outer, None, {"c": c}, {"x": torch.tensor(1.0)}, newton, FixedPointImplicit()).grads
        {'c': tensor(0.2500)}
    """

    repeats_batches = True

    linear: Linear = "gmres"
    iterations: int = 50
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.linear not in get_args(Linear):
            raise ValueError(f"linear={self.linear!r}: allowed are {', '.join(map(repr, get_args(Linear)))}")
        whole(iterations=self.iterations)
        number(0, 1, more="or None", tolerance=0 if self.tolerance is None else self.tolerance)

    def compute(self, problem: Problem) -> Result:
        solver, u = problem.solver, leaf_tensors(problem.u)
        refuse_rigid_solver(self, solver)
        start = starting_point(problem.w0, u if solver.anchored else constants(u))
        path = plain_steps(problem.batches, u, start, solver, problem.task_axis)
        w = leaf_tensors(path.w[-1])
        values, aux = outer_value(problem, u, w)
        found = gradient(values, [*u.values(), *w.values()])
        direct, reached = found[: len(u)], found[len(u) :]
        moved = self._step(problem, u, w, start)
        system = System(w, {}, 0.0, values.numel())
        g = system.rows({n: torch.zeros_like(w[n]) if v is None else v for n, v in zip(w, reached)})
        check_finite(values, moved, path.values)
        distance = self._check_fixed(problem, system, u, start, moved)
        q, residual, log = self._solved(system, _Products(system, moved), g)
        named = system.named(q)
        through = _gradient(moved, tuple(u.values()), named)
        grads = [a if b is None else b if a is None else a + b for a, b in zip(direct, through)]
        shown = residual if problem.task_axis else residual[0]
        return finish(
            self,
            problem,
            u,
            w,
            values,
            grads,
            aux,
            path.values,
            shown,
            distance=distance,
            solution=named,
            **log,
        )

    def _step(self, problem: Problem, u: Tensors, w: Tensors, start: Tensors) -> Tensors:
        """One more step from w, with its graph, on the last batch."""
        solver: Solver = problem.solver
        batches, last = problem.batches, max(solver.steps - 1, 0)
        state = solver.init(u, start)
        if solver.reads == "batch":
            moved, after = solver.step(last, u, w, batches.batch(last), state)
        else:
            _, grads = inner_gradients(batches.last, u, w, problem.task_axis, create_graph=True)
            moved, after = solver.step(last, u, w, grads, state)
        if set(after) != set(state):
            raise ValueError(
                f"{type(solver).__name__} keeps {', '.join(sorted(set(after) - set(state)))} from step to step, so its "
                'step is no map of w alone: take SGD or another without a state, or "unroll"'
            )
        return moved

    def _check_fixed(
        self, problem: Problem, system: System, u: Tensors, start: Tensors, moved: Tensors
    ) -> Tensor:
        """`||T(w_K) - w_K||` over that of the first step, `()` or `(T,)`; warns unless small."""
        fixed = constants(start)
        first = self._step(problem, constants(u), leaf_tensors(fixed), fixed)
        with torch.no_grad():
            last = (system.rows(moved) - system.rows(system.w)).norm(dim=1)
            size = (system.rows(first) - system.rows(fixed)).norm(dim=1)
            floor = torch.finfo(last.dtype).eps ** 0.5 * system.rows(system.w).norm(dim=1).clamp_min(1.0)
            open_tasks = (last > floor) & (last > 1e-3 * size)
        if bool(open_tasks.any()):
            tasks = f" in task(s) {open_tasks.nonzero().flatten().tolist()}" if problem.task_axis else ""
            warnings.warn(
                f"the inner solver has not come to rest{tasks}: its next step would move w by "
                f"{last[open_tasks].max().item():.3g}, its first one did by {size[open_tasks].max().item():.3g}. The "
                "implicit formula is evaluated at the returned point, where it is an approximation: take more inner "
                "steps, or differentiate them (unroll).",
                NotConverged,
                stacklevel=3,
            )
        ratio = torch.where(size > 0, last / size.clamp_min(torch.finfo(size.dtype).tiny), last)
        return ratio if problem.task_axis else ratio[0]

    def _solved(
        self, system: System, products: _Products, g: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """q `(T, n)`, its relative residual `(T,)`, and the number of iterations."""
        eps = torch.finfo(g.dtype).eps
        tolerance = self.tolerance if self.tolerance is not None else 1e-10 if eps < 1e-10 else 1e-5

        def transposed(v: Tensor) -> Tensor:
            return v - products.transposed(v)

        if self.linear == "gmres":
            q, iterations = gmres(transposed, g, self.iterations, tolerance)
        elif self.linear == "normal":
            q, iterations = conjugate_normal(
                transposed, lambda v: v - products.forward(v), g, self.iterations, tolerance
            )
        else:
            q, iterations = neumann(products.transposed, g, self.iterations, tolerance)
        residual = relative(g - transposed(q), g)
        if not bool(residual.isfinite().all()):
            raise NumericalError(
                f"the linear solve ({self.linear}) failed: a product with the step's derivative is not finite"
            )
        if bool((residual >= 1).any()):
            tasks = (residual >= 1).nonzero().flatten().tolist()
            raise NumericalError(
                f"the linear solve ({self.linear}) gains nothing in task(s) {tasks} (relative residual "
                f"{residual.max().item():.3g}): I - dT/dw is singular there, so the fixed point is not a function of "
                'u, or the series of "neumann" diverges (take "gmres")'
            )
        if bool((residual > max(100 * tolerance, eps**0.5)).any()):
            warnings.warn(
                f"the linear solve ({self.linear}) ended at a relative residual of {residual.max().item():.3g} after "
                f"{iterations} iterations: allow more, or another linear=",
                NotConverged,
                stacklevel=3,
            )
        return q, residual, {"iterations": iterations}

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        return Implicit().unreachable(solver)


class _Products:
    """Products of `dT/dw` with a vector `(T, n)` from both sides, for all tasks at once.

    Args:
        system: says how rows are names. moved: `T(u, w)` with its graph.
    """

    def __init__(self, system: System, moved: Tensors) -> None:
        self.system, self.moved = system, moved

    def transposed(self, vector: Tensor) -> Tensor:
        """`J^T v`: one backward pass."""
        wanted = tuple(self.system.w.values())
        found = _gradient(self.moved, wanted, self.system.named(vector), zeros=True)
        return self.system.rows(dict(zip(self.system.w, found)))  # type: ignore[arg-type]

    def forward(self, vector: Tensor) -> Tensor:
        """`J v`: the derivative of `y -> J^T y`, two backward passes."""
        wanted = tuple(self.system.w.values())
        dummy = {name: torch.zeros_like(value).requires_grad_() for name, value in self.moved.items()}
        product = _gradient(self.moved, wanted, dummy, zeros=True, create_graph=True)
        named = self.system.named(vector)
        weighed = [(p * named[name]).sum() for name, p in zip(self.system.w, product) if p is not None]
        total = torch.stack(weighed).sum()
        if not total.requires_grad:
            return torch.zeros_like(vector)
        found = torch.autograd.grad(
            total, tuple(dummy.values()), retain_graph=True, materialize_grads=True, allow_unused=True
        )
        return self.system.rows(dict(zip(dummy, found)))


def _gradient(
    moved: Tensors,
    wanted: tuple[Tensor, ...],
    weights: Tensors,
    zeros: bool = False,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """`sum_i weights_i^T dT_i/d(wanted)`; None, or with `zeros` 0, where T does not depend on a tensor."""
    there = [name for name, value in moved.items() if value.requires_grad]
    if not there:
        return [torch.zeros_like(value) if zeros else None for value in wanted]
    return list(
        torch.autograd.grad(
            [moved[name] for name in there], wanted, [weights[name] for name in there], retain_graph=True,
            allow_unused=True, materialize_grads=zeros, create_graph=create_graph,
        )
    )  # fmt: skip

"""SOBA: inner variables, linear system and outer variables each take one step, and go on from there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metapeft.base.arguments import number
from metapeft.hypergradients.checked_result import (
    check_finite,
    finish,
    gradient,
    outer_value,
    refuse_batch_solver,
)
from metapeft.hypergradients.implicit import System, less, relative, slope_of
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.loop import plain_steps
from metapeft.inner.solver import Solver
from metapeft.inner.variables import constants, leaf_tensors, starting_point
from metapeft.inner.warm_start import Resumed, WarmStart


@dataclass(frozen=True)
class SOBA(Engine):
    """`partial_u F - q^T d^2 phi / (dw du)` at the start w, with a running solution q of `H q = partial_w F`.

    All is evaluated at `(u, w, q)`; then w takes the solver's steps (one, as published), and
    `q <- q - lr (H q - partial_w F)`. The result's `.w`, an `mp.WarmStart`, holds both for the next call, which takes
    it as `w0=`; so do `BilevelTrainer(..., warm_start=True)` and its checkpoints. The first q is 0. With `data` it is
    stochastic: the inner batch serves the step and the products, the outer one the gradients of F.
    It is exact where w and q are at rest: w stationary and `H q = partial_w F`.
    Time: K inner gradients, one more with its graph, one Hessian-vector product, one mixed product; memory of one step.
    Source: Dagréou et al. 2022, arXiv 2201.13409, algorithm 1 (SOBA), with `q = -v`.

    Args:
        lr: rate of q, below 2 / (largest eigenvalue of H); as published that of the inner step.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> outer, inner = lambda u, w: w["x"], lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> c, w = torch.tensor(3.0), {"x": torch.tensor(0.0)}
        >>> for _ in range(3):  # q: 0, 1/2, 3/4
        ...     found = hypergradient(outer, inner, {"c": c}, w, SGD(1, 0.5), SOBA(lr=0.5))
        ...     w = found.w
        >>> found.grads, w  # x: 0, 3/2, 9/4, 21/8
        ({'c': tensor(0.7500)}, {'x': tensor(2.6250)})
    """

    lr: float = 0.1
    goes_on = True

    def __post_init__(self) -> None:
        number(above=True, lr=self.lr)

    def compute(self, problem: Problem) -> Result:
        refuse_batch_solver(self, problem.solver)
        if problem.solver.anchored:
            raise ValueError(
                "SOBA goes on from where it stands, so a proximal term would be about another point at every step: "
                "leave it out (weight_decay= is one about 0)"
            )
        solver = _resumed(problem)
        problem = replace(problem, solver=solver)
        u = leaf_tensors(problem.u)
        with torch.no_grad():
            start = starting_point(problem.w0, constants(u))
        w = leaf_tensors(start)
        values, aux = outer_value(problem, u, w)
        found = gradient(values, [*u.values(), *w.values()])
        slope = slope_of(problem, u, w, constants(start), batch=0)
        check_finite(values, slope, [])
        system = System(w, slope, 0.0, values.numel())
        g = system.rows({n: torch.zeros_like(w[n]) if v is None else v for n, v in zip(w, found[len(u) :])})
        q = _kept(solver, system, g)
        missing = g - system.hessian_product(q)
        grads = less(found[: len(u)], system.mixed_product(u, q))
        path = plain_steps(problem.batches, u, start, solver, problem.task_axis)
        residual = relative(missing, g)
        solution = system.named(q + self.lr * missing)
        solver.leave(solution)
        result = finish(
            self, problem, u, path.w[-1], values, grads, aux, path.values,
            residual if problem.task_axis else residual[0], solution=solution,
        )  # fmt: skip
        return replace(result, w=solver.kept_with(result.w))

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        why = (
            "every step starts from where the last one ended, whose dependence on {} is left out; use "
            '"unroll" without a warm start.'
        )
        return {"starts": why.format("a start"), "rates": why.format("the rates")}


def _resumed(problem: Problem) -> Resumed:
    """The solver as one that goes on, which also keeps what is this engine's own."""
    if isinstance(problem.solver, Resumed):
        return problem.solver
    return Resumed(problem.solver, problem.w0 if isinstance(problem.w0, WarmStart) else None)


def _kept(solver: Resumed, system: System, g: Tensor) -> Tensor:
    """q from the call before `(T, n)`; 0 for none."""
    kept = solver.left
    if kept is None:
        return torch.zeros_like(g)
    shapes, found = ({n: tuple(v.shape) for n, v in tensors.items()} for tensors in (system.w, kept))
    if found != shapes:
        raise ValueError(
            f"w0 was kept for other inner variables: its linear solution has {found}, here they are {shapes}"
        )
    return system.rows(kept).to(g)

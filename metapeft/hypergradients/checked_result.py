"""What the engines share: the outer value and the gradient of it, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metapeft.base.errors import NumericalError
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.objective import check_inner_values, check_value
from metapeft.inner.solver import Solver, Tensors
from metapeft.inner.variables import constants, leaf_tensors, starting_point


def outer_value(
    problem: Problem, u: Mapping[str, Tensor], w: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """Outer values, `()` or `(T,)`, with their graph, and the detached aux."""
    found = problem.outer_value(u, w)
    aux: dict[str, Any] = {}
    if problem.has_aux:
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
            raise ValueError(
                "has_aux=True: the outer objective has to return a pair (value, dict of tensors)"
            )
        found, given = found
        aux = {name: value.detach() if isinstance(value, Tensor) else value for name, value in given.items()}
    check_value(found, w if problem.task_axis else {}, problem.task_axis, "outer")
    return found, aux


def refuse_batch_solver(engine: Engine, solver: Solver) -> None:
    """Refuse a closed form or fixed-point map where the method is about inner gradients."""
    if solver.reads == "batch":
        raise ValueError(
            f"{type(solver).__name__} uses no inner gradients, which {type(engine).__name__} is about: "
            'use "unroll", which differentiates what the solver computes'
        )


def refuse_rigid_solver(engine: Engine, solver: Solver) -> None:
    """Refuse a solver through whose step no gradient may be taken."""
    if solver.differentiable is not None and solver.steps:
        raise ValueError(
            f"{type(engine).__name__} differentiates the inner steps, but {solver.differentiable}"
        )


def gradient(values: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradient of the mean of the outer values; None where they do not depend on a tensor."""
    mean = values.mean() if values.ndim else values
    if not mean.requires_grad:
        return [None] * len(wanted)
    return list(torch.autograd.grad(mean, wanted, allow_unused=True))


def finish(
    engine: Engine,
    problem: Problem,
    u: Tensors,
    w: Mapping[str, Tensor],
    values: Tensor,
    grads: Sequence[Tensor | None],
    aux: dict[str, Any],
    inner_values: list[Tensor],
    residual: Tensor | None = None,
    **log: Any,
) -> Result:
    """The result, after the checks: all that is not finite, and all that no loss reaches, is refused here."""
    found = dict(zip(u, grads))
    missing = [name for name, grad in found.items() if grad is None and name not in problem.optional]
    if missing:
        zeros = _true_zeros(problem, u, w, missing)
        for name in missing:
            if name not in zeros:
                raise ValueError(_no_gradient(engine, problem, name))
        found.update(zeros)
    known = {name: grad for name, grad in found.items() if grad is not None}
    values = values.detach()
    check_finite(values, known, inner_values)
    log["values"] = values
    if inner_values:
        log["inner_values"] = torch.stack(inner_values)
    mean = values.mean() if values.ndim else values
    return Result(mean, known, constants(w), residual, log, aux)


def _true_zeros(problem: Problem, u: Tensors, w: Mapping[str, Tensor], missing: list[str]) -> Tensors:
    """Without any step: zeros for the outer variables that the steps would have used."""
    if problem.solver is None or problem.solver.steps or problem.inner is None:
        return {}
    fresh = leaf_tensors(u)
    value = problem.solver.objective(
        problem.batches(0), fresh, leaf_tensors(w), starting_point(problem.w0, fresh)
    )
    wanted = [fresh[name] for name in missing]
    reached: list[Tensor | None] = list(torch.autograd.grad(value.sum(), wanted, allow_unused=True))
    return {
        name: torch.zeros_like(u[name])
        for name, grad in zip(missing, reached)
        if grad is not None or name.startswith("rates.")
    }


def _no_gradient(engine: Engine, problem: Problem, name: str) -> str:
    why = "".join(f" With this method: {reason}" for reason in engine.unreachable(problem.solver).values())
    return (
        f"no gradient reaches the outer variable u[{name!r}] through {type(engine).__name__}: neither the "
        "outer objective nor what this method differentiates of the inner level depends on it. Take it out "
        "of u, or check that the objectives (and w0, then a function of u) read it from the u "
        f"that they are called with, without detaching it.{why}"
    )


def check_finite(values: Tensor, grads: Tensors, inner_values: list[Tensor]) -> None:
    """One look at everything (one synchronisation); the search for the culprit only if that fails."""
    total = torch.stack(
        [values.sum(), *(v.sum() for v in inner_values), *(g.sum() for g in grads.values())]
    ).sum()
    if bool(total.isfinite()):
        return
    check_inner_values(inner_values)
    if not bool(values.isfinite().all()):
        bad = (~values.isfinite()).nonzero().flatten().tolist()
        where = f" for task(s) {bad}" if values.ndim else ""
        raise NumericalError(
            f"the outer objective is {values[~values.isfinite()].flatten()[0].item()}{where}: the inner loop "
            "has probably diverged (lower its rate), or the outer data are not finite"
        )
    for name, grad in grads.items():
        if not bool(grad.isfinite().all()):
            raise NumericalError(
                f"the gradient for {name!r} is not finite although the objectives are: "
                "an operation has no finite derivative there (a square root at 0?), or a rate is too large"
            )

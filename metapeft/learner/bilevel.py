"""A learner's hypergradient: its objectives as a bilevel problem, handed to an engine.

What depends on `(u, batch)` but not on `w` (generated seeds, the start of an adapted head, the features of a body
that no inner step changes) is computed once and handed to the engine as further entries of u with a task axis;
their gradients are pulled back once. This equals the direct form, in which every objective computes them again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metapeft.base.gradients import twice_differentiable
from metapeft.heads.head import HEAD
from metapeft.hypergradients.envelope import Envelope
from metapeft.hypergradients.first_order import FirstOrder
from metapeft.hypergradients.forward import Forward
from metapeft.hypergradients.multi_step import MultiStep
from metapeft.hypergradients.problem import Problem, Result, unreachable
from metapeft.hypergradients.reptile import Reptile
from metapeft.hypergradients.table import registry
from metapeft.inner.solver import Bound, Solver
from metapeft.inner.warm_start import Resumed, WarmStart
from metapeft.inner.wrapped import Wrapped
from metapeft.learner.derived import PREFIX, Derived, derive, parted
from metapeft.learner.idle_weights import may_be_idle, note_idle
from metapeft.learner.objectives import Objectives
from metapeft.learner.roles import Roles, Tensors

OF_BODY = ("weights.", "factors.", "selection.")  # outer variables that act in the backbone


class Completed(Wrapped):
    """A solver that also reads outer variables which are not trained, such as rates learned earlier.

    Args:
        solver: the solver itself. constants: what it reads beside the problem's u.
    """

    def __init__(self, solver: Solver, constants: Tensors) -> None:
        super().__init__(solver)
        self.constants = dict(constants)

    def init(self, u: Tensors, w: Tensors) -> dict[str, Any]:
        return super().init({**self.constants, **u}, w)

    def step(
        self, k: int, u: Tensors, w: dict[str, Tensor], grads: Any, state: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return super().step(k, {**self.constants, **u}, w, grads, state)

    def objective(self, inner: Bound, u: Tensors, w: Tensors, start: Tensors) -> Tensor:
        return super().objective(inner, {**self.constants, **u}, w, start)


def hypergradient(
    objectives: Objectives, w0: Tensors | None = None, direct_form: bool | None = None
) -> Result:
    """The outer value of a batch and its gradient for everything that the learner trains.

    Args:
        objectives: of the batch, in training.
        w0: a start of the inner variables other than the learner's own, `(T, ...)`; a constant. Of a
            `WarmStart` the solver's state goes on too, as does the result's `.w`; an empty one: the learner's start.
        direct_form: whether the objectives compute what is derived each time they are called; None: only
            where the engine's cost grows with the number of entries of u (forward mode).

    Raises:
        ValueError: an outer variable that no loss reaches.
        NumericalError: an objective or a gradient that is not finite.
    """
    solver = _solver(objectives.roles)
    if solver is None or not isinstance(w0, WarmStart):
        return _hypergradient(objectives, w0, direct_form, solver)
    resumed = Resumed(solver, w0)
    found = _hypergradient(objectives, w0 or None, direct_form, resumed)
    return replace(found, w=resumed.kept_with(found.w))


def _hypergradient(
    objectives: Objectives, w0: Tensors | None, direct_form: bool | None, solver: Solver | None
) -> Result:
    """`hypergradient`, with the solver as it is used here."""
    roles, passes = objectives.roles, objectives.passes
    outer_u = {name: value.detach().requires_grad_() for name, value in roles.trained.items()}
    if direct_form or (direct_form is None and isinstance(roles.engine, Forward)):
        if roles.generator is not None:
            passes.features()  # constants, taken before the engine transforms the weights
        with twice_differentiable():
            found = roles.engine(_problem(objectives, w0, outer_u, None, solver))
        return _result(found, dict(found.grads), objectives)
    with twice_differentiable():
        derived = derive(passes, outer_u, keep=registry.made(roles.engine))
    lost, layers = _constants(objectives, w0, derived), derived.layers
    tied = {name: value for name, value in derived.values.items() if value.requires_grad and name not in lost}
    constant = {name: value.detach() for name, value in derived.values.items() if name not in tied}
    del derived  # with the graphs of what gets no gradient
    only_derived = roles.only_derived
    if layers is not None:
        of_body = {name for name in outer_u if name.startswith(OF_BODY)}
        only_derived = only_derived | (of_body - layers.behind)
    u = {name: value for name, value in outer_u.items() if name not in only_derived}
    entries = {PREFIX + name: value for name, value in tied.items()}
    with twice_differentiable():  # for engines of the user's own, too
        found = roles.engine(_problem(objectives, w0, {**u, **entries}, constant, solver))
    grads = _pulled_back(found.grads, tied, outer_u, may_be_idle(roles))
    return _result(found, grads, objectives)


def _solver(roles: Roles) -> Solver | None:
    """The inner solver, which also knows the rates that are not trained."""
    fixed = {n: v for n, v in roles.variables.items() if n.startswith("rates.") and n not in roles.trained}
    return Completed(roles.inner, fixed) if roles.inner is not None and fixed else roles.inner


def _problem(
    objectives: Objectives, w0: Tensors | None, u: Tensors, constant: Tensors | None, solver: Solver | None
) -> Problem:
    """The bilevel problem in which u and `constant` have what is derived; None: it is made of u wherever it is read."""
    roles, passes = objectives.roles, objectives.passes

    def start(u: Tensors) -> dict[str, Tensor]:
        if w0 is not None:
            return dict(w0)
        if constant is None:
            own, made = u, derive(passes, u, keep=False).values
        else:
            own, made = parted(u, constant)
        return _displaced(roles, u, roles.start(own, made, passes.tasks))

    # the objectives read what is adapted from w, and of what is derived only seeds that stay as they are
    anew = roles.generator is not None and not set(roles.seeds) <= set(roles.adapted)
    derived = {} if constant is None and not anew else constant
    return Problem(
        outer=partial(objectives.outer, derived=derived),
        inner=None if solver is None else partial(objectives.inner, derived=derived),
        u=u,
        w0=start,
        solver=solver,
        method=roles.method,
        task_axis=True,
        has_aux=True,
        optional=may_be_idle(roles),
    )


def _displaced(roles: Roles, u: Tensors, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """The start; for Reptile, a Full update's as a displacement of its outer weight, of value 0."""
    if not isinstance(roles.engine, Reptile):
        return start
    return {**start, **{n: start[n] + (u[w] - u[w].detach()) for n, w in roles.full_weights.items()}}


def _constants(objectives: Objectives, w0: Tensors | None, derived: Derived) -> set[str]:
    """What is derived but gets no gradient: starts that the engine does not reach, or that `w0` replaces.

    Where inner gradients are constants, so are seeds per input that only the inner objective reads.
    """
    roles, lost = objectives.roles, set()
    engine = roles.engine
    if w0 is not None or isinstance(engine, Reptile) or "starts" in unreachable(engine, roles.inner):
        lost = {f"seed.{name}" for name in roles.adapted} | (set(HEAD) if roles.adapts_head else set())
    constant = isinstance(engine, FirstOrder | Envelope)  # inner gradients
    constant |= isinstance(engine, MultiStep) and not engine.second_order
    if constant and not objectives.passes.outer_reads_support:
        lost |= {f"support.{name}" for name in roles.seeds}
    if derived.layers is not None:
        lost |= {f"seed.{name}" for name in roles.seeds} - derived.layers.behind
        if constant or isinstance(engine, Reptile):
            lost |= derived.inner_only
    return lost


def _pulled_back(
    grads: Tensors, tied: Tensors, outer_u: Tensors, optional: frozenset[str]
) -> dict[str, Tensor]:
    """Gradients of the outer variables, with those of the derived entries pulled back to them once.

    What is optional is left out where no loss reaches it.
    """
    pulled: dict[str, Tensor | None] = dict.fromkeys(outer_u)
    if tied:
        upper = [grads[PREFIX + name] for name in tied]
        found = torch.autograd.grad(list(tied.values()), list(outer_u.values()), upper, allow_unused=True)
        pulled = dict(zip(outer_u, found))
    total: dict[str, Tensor] = {}
    for name in outer_u:
        parts = [part for part in (grads.get(name), pulled[name]) if part is not None]
        if not parts and name in optional:
            continue
        if not parts:
            raise ValueError(
                f"no loss reaches the outer variable {name!r} in this learner: take its group out of outer"
            )
        total[name] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return total


def _result(found: Result, grads: dict[str, Tensor], objectives: Objectives) -> Result:
    note_idle(objectives.roles, grads)
    statistics = {
        name: (mean.detach(), variance.detach(), count)
        for name, (mean, variance, count) in objectives.passes.statistics.items()
    }
    accuracy = {name: value for name, value in found.aux.items() if name != "logits"}
    log = {**found.log, **accuracy, "statistics": statistics}
    return Result(found.value, grads, found.w, found.residual, log, found.aux)

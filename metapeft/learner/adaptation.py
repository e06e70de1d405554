"""A learner's adaptation to support sets, outside of training."""

from __future__ import annotations

import torch
from torch import Tensor

from metapeft.inner.loop import solve
from metapeft.inner.solver import Solver
from metapeft.inner.warm_start import Resumed, WarmStart
from metapeft.learner.derived import derive
from metapeft.learner.objectives import Objectives
from metapeft.learner.roles import Roles


def solver_outside_training(roles: Roles, steps: int | None = None) -> Solver | None:
    """The inner solver as it is used outside training; ValueError for steps of a learner that has none."""
    wanted = roles.test_steps if steps is None else steps
    if roles.inner is None and wanted is not None:
        raise ValueError(f"steps={wanted}: this learner has no inner solver")
    return roles.inner if roles.inner is None or wanted is None else roles.inner.with_steps(wanted)


def adapted(
    objectives: Objectives, steps: int | None = None, checked: bool = True, w0: WarmStart | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adapt to the support sets: the inner variables and what was derived from the batch; no graphs.

    Args:
        objectives: of the tasks. steps: of the inner solver; None for the learner's own outside training.
        checked: False lets tasks that diverge stand beside the others.
        w0: where they start, in place of the learner's own starts; the solver goes on from its state.

    Raises:
        ValueError: `w0` of other names or shapes, or without an inner solver.
    """
    roles, passes = objectives.roles, objectives.passes
    with torch.no_grad():
        made = derive(passes, {}).values
    solver = solver_outside_training(roles, steps)
    if solver is None:
        if w0 is not None:
            raise ValueError("w0= has no effect: this learner has no inner solver")
        return {}, made

    def start() -> dict[str, Tensor]:
        own = roles.start({}, made, passes.tasks)
        return own if w0 is None else w0.fitting(own)

    w = solve(
        lambda _, w: objectives.inner({}, w, made),
        roles.variables,
        lambda _: start(),
        solver if w0 is None else Resumed(solver, w0),
        task_axis=True,
        checked=checked,
    )
    return w, made

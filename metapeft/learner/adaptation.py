"""A learner's adaptation to support sets, outside of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metapeft.inner.loop import solve
from metapeft.inner.solver import Solver
from metapeft.learner.objectives import Objectives

if TYPE_CHECKING:
    from metapeft.learner.learner import Learner


def solver_outside_training(learner: Learner, steps: int | None = None) -> Solver | None:
    """The inner solver as it is used outside training; ValueError for steps of a learner that has none."""
    wanted = learner.test_steps if steps is None else steps
    if learner.inner is None and wanted is not None:
        raise ValueError(f"steps={wanted}: this learner has no inner solver")
    return learner.inner if learner.inner is None or wanted is None else learner.inner.with_steps(wanted)


def adapted(
    learner: Learner, objectives: Objectives, steps: int | None, checked: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """See `Learner.solve`; `checked=False` lets tasks that diverge stand beside the others."""
    with torch.no_grad():
        made = objectives.derive({})
    solver = solver_outside_training(learner, steps)
    if solver is None:
        return {}, made
    w = solve(
        lambda _, w: objectives.inner({}, w, made),
        learner.variables,
        lambda _: objectives.start({}, made),
        solver,
        task_axis=True,
        checked=checked,
    )
    return w, made

"""A learner's adaptation to support sets, outside of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metapeft.inner.loop import solve
from metapeft.objectives import Objectives

if TYPE_CHECKING:
    from metapeft.learner import Learner


def adapted(
    learner: Learner, objectives: Objectives, steps: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """See `Learner.solve`."""
    with torch.no_grad():
        made = objectives.derive({})
    solver = learner.test_solver(steps)
    if solver is None:
        return {}, made
    w = solve(
        lambda _, w: objectives.inner({}, w, made),
        learner.variables,
        lambda _: objectives.start({}, made),
        solver,
        task_axis=True,
    )
    return w, made

"""A bilevel problem as something that can be trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metapeft.base import state
from metapeft.hypergradients.problem import Problem, Result, resolve
from metapeft.inner.warm_start import Resumed, WarmStart
from metapeft.learner import settings
from metapeft.training.task import Task


class ProblemTask(Task):
    """What `BilevelTrainer` trains of an `mp.Problem`: copies of its outer variables.

    Args:
        problem: the problem; nothing of it is changed.
        device, dtype: of the copies; None for the problem's own.

    Example:
        >>> half = lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> c, x = torch.tensor(3.0), torch.tensor(0.0)
        >>> ProblemTask(Problem(half, half, {"c": c}, {"x": x})).trained
        {'c': tensor(3.)}
    """

    undivided = "a bilevel problem is not cut into tasks"
    needs_episodes = False
    keeps_state = True
    smaller = "smaller batches or fewer inner steps"

    def __init__(
        self, problem: Problem, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.problem = problem
        self.variables = {n: v.to(device, dtype) for n, v in state.copies(problem.u).items()}
        self._engine = resolve(problem.method)
        self._step: int | None = None

    @property
    def trained(self) -> dict[str, Tensor]:
        """The copies."""
        return self.variables

    @property
    def goes_on(self) -> bool:
        return bool(getattr(self._engine, "goes_on", False))

    def hypergradient(self, batch: Any = None, w0: Mapping[str, Tensor] | None = None) -> Result:
        """The gradient at the current outer variables.

        Args:
            batch: `(inner, outer)`, the problem's data; None for what it has.
            w0: another start of the inner variables, a constant; with a `WarmStart` the solver goes on from its state.
        """
        own = self.problem
        data = own.data if batch is None else batch
        if (
            own.solver is not None
            and own.solver.steps == 0
            and data is not None
            and isinstance(data[0], list)
        ):
            more = getattr(self._engine, "fresh_batches", 0)  # no step takes a batch of its own
            data = (data[0][-more:] if more else data[0][-1], data[1])
        own = replace(own, u=self.trained, w0=w0 or own.w0, data=data).started(self._step)
        if own.solver is None or not isinstance(w0, WarmStart):
            return self._engine(own)
        resumed = Resumed(own.solver, w0)
        found = self._engine(replace(own, solver=resumed))
        return replace(found, w=resumed.kept_with(found.w))

    def at(self, step: int) -> ProblemTask:
        """The same task in an outer step, whose number the start of its inner variables may read."""
        other = copy.copy(self)
        other._step = step
        return other

    def held(self) -> ProblemTask | None:
        """The same task with its inner variables held: no inner step, the same outer variables."""
        if self.problem.solver is None:
            return None
        other = copy.copy(self)
        other.problem = replace(self.problem, solver=self.problem.solver.with_steps(0))
        return other

    def state(self) -> dict[str, Tensor]:
        """Copies of the outer variables."""
        return state.copies(self.trained)

    def load_state(self, given: Mapping[str, Tensor]) -> None:
        """Take over the outer variables of a checkpoint; raises ValueError where they do not fit."""
        state.take_over(self.trained, given)

    def settings(self) -> dict[str, Any]:
        """What identifies this task in a run folder."""
        own = self.problem
        return {
            "method": "problem",
            "solver": settings.of(own.solver),
            "hypergradient": settings.of(own.method),
            "task_axis": own.task_axis,
            "shapes": {name: list(value.shape) for name, value in self.trained.items()},
        }

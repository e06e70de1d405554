"""What a trainer trains: outer variables with a gradient, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metapeft.hypergradients.problem import Result
from metapeft.learner.learner import Learner


@runtime_checkable
class Task(Protocol):
    """Outer variables, the gradient of a batch for them, and what else can be done with them.

    A class that derives from it has `trained`, `hypergradient`, `state`, `load_state` and `settings` of its own; what
    follows them here is right for a task of which no more is known.

    Attributes:
        undivided: the reason why a batch is not cut into tasks, for several forwards or processes; None where it is.
        needs_episodes: whether there is no gradient without a batch.
        keeps_state: whether `hypergradient` takes an empty `WarmStart` for its own start, and its `.w` is one then.
        smaller: what to take less of where memory is too little for one task.
    """

    undivided: str | None = None
    needs_episodes: bool = True
    keeps_state: bool = False
    smaller: str = 'fewer inner steps, ways or queries, a smaller backbone, or hypergradient="first-order"'

    @property
    def trained(self) -> dict[str, Tensor]:
        """Name -> outer variable, each a tensor that the optimiser changes in place."""
        ...

    def hypergradient(self, batch: Any, w0: Mapping[str, Tensor] | None = None) -> Result:
        """The outer value of a batch and its gradient for everything in `trained`; `w0`: a start of the inner loop."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors that a checkpoint holds."""
        ...

    def load_state(self, given: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a checkpoint; raises ValueError where they do not fit."""
        ...

    def settings(self) -> dict[str, Any]:
        """What identifies this task in a run folder, as JSON can say it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the outer variables are."""
        return next(iter(self.trained.values())).device

    @property
    def learner(self) -> Learner | None:
        """The learner that a validation adapts to episodes; None where there is none."""
        return None

    @property
    def backbone(self) -> nn.Module | None:
        """The module whose running statistics follow those that a gradient comes with; None where none does."""
        return None

    def refuse_warm_start(self) -> None:
        """Raise ValueError where inner variables that are kept from step to step have no effect, or a wrong one."""
        return

    def at(self, step: int) -> Task:
        """The same task in outer step number `step`, from 0, on the same outer variables."""
        return self

    def held(self) -> Task | None:
        """The same task without an inner step, on the same outer variables; None where it has no inner solver."""
        return None

    def direct(self) -> Task | None:
        """The same task at 0 inner steps, on the same outer variables; None where that is nothing to train."""
        return None

    def recomputing(self) -> Task | None:
        """The same gradient in less memory and more time, of the same tensors; None where there is none."""
        return None

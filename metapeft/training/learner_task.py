"""A learner as something that can be trained, and what only has a learner's methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metapeft.hypergradients.problem import Result
from metapeft.hypergradients.unroll import Unroll
from metapeft.learner.learner import Learner
from metapeft.training.task import Task


class GivenTask(Task):
    """What has `trained`, `hypergradient`, `state`, `load_state` and `settings`, and says no more of itself.

    Args:
        given: an object with these five; where its gradients come with batch statistics, also with `model`.
    """

    def __init__(self, given: Any) -> None:
        self.given = given

    @property
    def trained(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.given.trained
        return found

    @property
    def backbone(self) -> nn.Module | None:
        found: nn.Module = self.given.model.module
        return found

    def hypergradient(self, batch: Any, w0: Mapping[str, Tensor] | None = None) -> Result:
        found: Result = self.given.hypergradient(batch, w0)
        return found

    def state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.given.state()
        return found

    def load_state(self, given: Mapping[str, Tensor]) -> None:
        self.given.load_state(given)

    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = self.given.settings()
        return found


class LearnerTask(GivenTask):
    """A learner: its batches are episodes, cut into tasks as memory and processes ask for.

    Args:
        learner: the learner, which training changes.

    Example:
        >>> import metapeft as mp
        >>> learner = mp.methods.maml(mp.backbones.mlp(4, 3, hidden=(8,)), steps=2)
        >>> type(learner.engine).__name__, type(LearnerTask(learner).recomputing().learner.engine).__name__
        ('Unroll', 'Recompute')
    """

    given: Learner
    keeps_state = True

    def __init__(self, given: Learner) -> None:
        super().__init__(given)
        if given.batch_loss is not None:
            self.undivided = "batch_loss= is of all tasks of a step together"

    @property
    def learner(self) -> Learner:
        return self.given

    @property
    def goes_on(self) -> bool:
        return bool(getattr(self.given.engine, "goes_on", False))

    def refuse_warm_start(self) -> None:
        """Raise ValueError without an inner solver, and for starts that kept inner variables would cut off."""
        if self.given.inner is None:
            raise ValueError("warm_start=True has no effect: this learner has no inner solver")
        for group in ("factors", "generator"):
            if group in self.given.outer and self.given.adapts_start(group):
                raise ValueError(
                    f"warm_start=True goes on from the adapted factors, so the starts that "
                    f'outer="{group}" trains get no gradient: take that group out, or leave warm_start'
                )

    def direct(self) -> Task | None:
        """The learner without its inner loop, where it has one and there is more to train than rates."""
        view = None if self.given.inner is None else self.given.without_inner()
        return None if view is None or not view.trained else LearnerTask(view)

    def recomputing(self) -> Task | None:
        """The learner with the engine `"recompute"`, where its own is `"unroll"`, of which it is the exact equal."""
        if type(self.given.engine) is not Unroll:
            return None
        return LearnerTask(self.given.with_engine("recompute"))

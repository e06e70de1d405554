"""MAML++: MAML with a loss after every inner step, learned rates, and an engine that training changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metapeft.base.arguments import whole
from metapeft.hypergradients.multi_step import MultiStep
from metapeft.inner.descent import SGD
from metapeft.learner.learner import Learner
from metapeft.methods.common import solver
from metapeft.methods.recipes import maml


def mamlpp(
    backbone: nn.Module, *, steps: int | None = None, lr: float | None = None, **options: Any
) -> Learner:
    """MAML++: a rate a layer and step, and the engine `MultiStep`, which `annealing` changes during training.

    It takes 5 steps from rates of 0.1 unless said.

    Without `annealing` the engine is that of MAML. Its batch normalisation with statistics and affine
    parameters of each inner step is not part of this; `norm="support"` is the default.
    Source: Antoniou et al. 2019, arXiv 1810.09502.

    Example:
        >>> import metapeft as mp
        >>> learner = mamlpp(mp.backbones.mlp(4, 3, hidden=(8,)), steps=2)
        >>> learner.method, learner.variables["rates.classifier.bias.delta"]
        (MultiStep(weights=None, second_order=True), tensor([0.1000, 0.1000]))
        >>> trainer = mp.BilevelTrainer(learner, schedule=annealing(learner, multi_step=100, first_order=50))
    """
    inner = solver(options, lambda steps=5, lr=0.1: SGD(steps, lr, rates="step"), steps=steps, lr=lr)
    options = {
        "outer": ("weights", "rates"),
        "hypergradient": MultiStep(),
        "name": "maml++",
        **options,
        "inner": inner,
    }
    return maml(backbone, **options)


def step_weights(step: int, until: int, inner_steps: int) -> tuple[float, ...]:
    """The weights v of `MultiStep` at an outer step: equal at first, all on the last inner step in the end.

    `v_k = max(1 - step / until, 0) / K` for k < K, and the last takes the rest.
    Source: Antoniou et al. 2019, section 4 ("multi-step loss optimization"); without the floor of their code.

    Args:
        step: outer step, from 0. until: where only the last inner step counts. inner_steps: K, 1 or more.

    Example:
        >>> step_weights(0, until=10, inner_steps=4), step_weights(5, 10, 4), step_weights(10, 10, 4)
        ((0.25, 0.25, 0.25, 0.25), (0.125, 0.125, 0.125, 0.625), (0.0, 0.0, 0.0, 1.0))
    """
    each = max(1.0 - step / until, 0.0) / inner_steps if until else 0.0
    return (*[each] * (inner_steps - 1), 1.0 - each * (inner_steps - 1))


class Annealing:
    """A schedule of torch's form: the outer rate by cosine, and the learner's engine by the outer step.

    What it does is a function of the step alone, so a resumed run goes on as if it had never stopped.
    """

    def __init__(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        steps: int,
        multi_step: int,
        first_order: int,
    ) -> None:
        self.learner, self.multi_step, self.first_order = learner, multi_step, first_order
        self.cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
        self._set_engine(0)

    def _set_engine(self, step: int) -> None:
        inner = self.learner.inner
        count = 1 if inner is None else inner.steps
        weights = step_weights(step, self.multi_step, count)
        engine = MultiStep(weights, second_order=step >= self.first_order)
        # checked as at the start; what the learner's settings name stays
        self.learner.engine = self.learner.with_engine(engine).engine

    def step(self) -> None:
        """After an outer step."""
        self.cosine.step()
        self._set_engine(self.cosine.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return dict(self.cosine.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.cosine.load_state_dict(state)
        self._set_engine(self.cosine.last_epoch)


def annealing(
    learner: Learner, *, multi_step: int, first_order: int = 0
) -> Callable[[torch.optim.Optimizer, int], Annealing]:
    """The `schedule=` of a trainer for MAML++: multi-step loss, derivative annealing and cosine in one.

    Args:
        learner: what is trained, with `hypergradient=MultiStep()`, as `mamlpp` gives.
        multi_step: outer steps over which the weights of the losses move to the last inner step.
        first_order: first-order gradients up to this outer step, second-order ones from it on.

    Raises:
        ValueError: a learner with another engine, numbers below 0.

    Example:
        >>> import metapeft as mp
        >>> learner = mamlpp(mp.backbones.mlp(4, 3, hidden=(8,)), steps=2)
        >>> schedule = annealing(learner, multi_step=4, first_order=1)
        >>> running = schedule(torch.optim.Adam(learner.trained.values()), 8)
        >>> learner.engine
        MultiStep(weights=(0.5, 0.5), second_order=False)
    """
    if not isinstance(learner.engine, MultiStep) or learner.inner is None or learner.inner.steps < 1:
        raise ValueError(
            f"learner has hypergradient={learner.method!r}: annealing changes MultiStep(), with an "
            "inner solver of 1 step or more, as in mp.methods.mamlpp"
        )
    whole(0, multi_step=multi_step, first_order=first_order)
    return lambda optimizer, steps: Annealing(learner, optimizer, steps, multi_step, first_order)

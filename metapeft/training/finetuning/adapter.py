"""One adapter in training: its factors, its optimiser, its batches, and the best state so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metapeft.base import state
from metapeft.training.averages import Averages
from metapeft.training.finetuning.metrics import is_better
from metapeft.training.finetuning.order import Draw
from metapeft.training.finetuning.rows import Batch, Rows
from metapeft.training.finetuning.settings import FineTuning
from metapeft.training.optimizer import made_optimizer, resolve_schedule


class Adapter:
    """An update in training on data of its own.

    Args:
        factors: where it starts, `name -> (1, ...)`; copied.
        rows: what it is trained on. validation: what it is validated on, or None. settings: how.

    Attributes:
        factors: the current ones, leaves that ask for gradients.
        step: steps made. total: steps of the whole training, less where it stops early.
        best, best_step, best_factors: of the best validation. waited: validations since.
        log: a dict a logged step.
    """

    def __init__(
        self, factors: Mapping[str, Tensor], rows: Rows, validation: Rows | None, settings: FineTuning
    ) -> None:
        self.rows, self.validation, self.settings = rows, validation, settings
        self.factors = {name: value.detach().clone().requires_grad_() for name, value in factors.items()}
        self.draw = Draw(rows, settings.batch_size, settings.seed, settings.bucket)
        self.total = settings.steps or (settings.epochs or 1) * self.draw.steps
        self.optimizer = made_optimizer(settings.optimizer, self.factors, settings.lr, settings.options or {})
        self.scheduler = resolve_schedule(settings.schedule, self.optimizer, self.total, settings.warmup)
        self.averages = Averages()
        self.log: list[dict[str, Any]] = []
        self.step, self.waited, self.stopped = 0, 0, False
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_factors: Mapping[str, Tensor] | None = None

    @property
    def active(self) -> bool:
        """Whether it makes a further step."""
        return self.step < self.total and not self.stopped

    @property
    def validates(self) -> bool:
        """Whether it is validated after the step that it has just made."""
        every = self.settings.validate_every or self.draw.steps
        return self.validation is not None and (self.step % every == 0 or self.step == self.total)

    def batch(self) -> Batch:
        """The rows of the next step."""
        return self.draw.batch(self.step)

    def move(self, loss: float, weight: float) -> None:
        """A step of the optimiser along the gradients of the batch's sum, divided by its weight."""
        for value in self.factors.values():
            if value.grad is not None and weight != 1.0:
                value.grad.div_(weight)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.factors.values()), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        self.step += 1
        self.averages.add({"loss": loss})

    def judge(self, found: Mapping[str, float]) -> None:
        """Keep the state if the validation is the best so far; stop where patience is at an end."""
        value = found[f"validation_{self.settings.watched}"]
        if is_better(self.settings.watched, value, self.best):
            self.best, self.best_step, self.waited = value, self.step, 0
            self.best_factors = state.copies(self.factors)
        else:
            self.waited += 1
            self.stopped = self.settings.patience is not None and self.waited >= self.settings.patience

    def chosen(self) -> dict[str, Tensor]:
        """The best factors where there were validations, else the last ones."""
        return state.copies(self.factors if self.best_factors is None else self.best_factors)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "factors": state.copies(self.factors),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "sums": self.averages.sums,
            "step": self.step,
            "waited": self.waited,
            "stopped": self.stopped,
            "best": self.best,
            "best_step": self.best_step,
            "best_factors": self.best_factors,
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go on where a state was taken."""
        state.take_over(self.factors, tree["factors"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(tree["scheduler"])
        self.averages.sums = tree["sums"]
        self.step, self.waited, self.stopped = tree["step"], tree["waited"], tree["stopped"]
        self.best, self.best_step = tree["best"], tree["best_step"]
        like = next(iter(self.factors.values()))
        best = tree["best_factors"]
        self.best_factors = (
            None if best is None else {name: value.to(like.device) for name, value in best.items()}
        )

"""AutoLoRA's search: selection variables by hypergradient, the update by gradient, one step of each in turn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metapeft.base import state
from metapeft.base.errors import stored_in
from metapeft.base.stored_settings import as_json, refuse_difference
from metapeft.hypergradients.problem import Problem, resolve
from metapeft.inner.descent import SGD
from metapeft.learner.settings import of
from metapeft.training.finetuning.adapter import Adapter
from metapeft.training.finetuning.fit import described
from metapeft.training.finetuning.joint_step import JointStep
from metapeft.training.finetuning.order import Draw
from metapeft.training.finetuning.rows import Batch, Rows
from metapeft.training.finetuning.settings import FineTuning
from metapeft.training.rank_search.methods import AutoLoRARanks
from metapeft.training.runs.run import Run
from metapeft.updates.attached import AttachedModel
from metapeft.updates.formats.selection import Softmax

MOVED = 0.1  # of k alpha from 1: what less than that says about ranks is where noise has put it


class SelectionSearch:
    """The two levels: factors on the training rows, logits on the validation rows.

    Args:
        model: attached. rows: of both levels. settings: of the lower level. method: of the upper.

    Attributes:
        logits: parameter -> `(k,)`. lower: the update in training. log: a dict a logged step.
    """

    def __init__(
        self, model: AttachedModel, train: Rows, validation: Rows, settings: FineTuning, method: AutoLoRARanks
    ) -> None:
        self.model, self.settings, self.method = model, settings, method
        self.selection, self.joint = Softmax(), JointStep(model, settings)
        start = model.factors()
        if model.given_start is not None:  # an update that is there is not divided by k
            start = self.selection.undone(model.sites, start)
        self.lower = Adapter(start, train, None, settings)
        self.validation = Draw(validation, settings.batch_size, settings.seed, settings.bucket)
        like = next(iter(model.parameters.values()))
        self.logits = {
            name: value.to(like).requires_grad_() for name, value in self.selection.start(model.sites).items()
        }
        self.upper = torch.optim.Adam(list(self.logits.values()), lr=method.lr, betas=method.betas)
        self.engine = resolve(method.hypergradient)
        self.log: list[dict[str, Any]] = []

    def problem(self, train: Batch, validation: Batch) -> Problem:
        """`L_val(D - lr grad_D L_tr(D, a), a)` as a function of the logits a, at the current update D."""
        rate = float(self.lower.optimizer.param_groups[0]["lr"])
        w0 = {name: value.detach() for name, value in self.lower.factors.items()}
        return Problem(
            self.mean_loss, self.mean_loss, self.logits, w0, SGD(1, rate), self.engine, ([train], validation)
        )

    def mean_loss(self, logits: Mapping[str, Tensor], factors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean loss of a batch under the weighted update."""
        values, weights = self.joint.sums([self.selection(self.model.sites, factors, logits)], [batch])
        return values[0] / weights[0]

    def step(self) -> None:
        """The logits move by the hypergradient of a virtual step, which is then made anew, at the new logits."""
        train = self.lower.batch()
        found = self.engine(self.problem(train, self.validation.batch(self.lower.step)))
        for name, value in self.logits.items():
            value.grad = found.grads[name]
        self.upper.step()
        self.upper.zero_grad(set_to_none=True)
        loss = self.mean_loss(
            {name: value.detach() for name, value in self.logits.items()}, self.lower.factors, train
        )
        loss.backward()  # type: ignore[no-untyped-call]
        self.lower.move(float(loss.detach()), 1.0)
        self.lower.averages.sums["validation_loss"] = self.lower.averages.sums.get(
            "validation_loss", 0.0
        ) + float(found.value)

    def run(self, folder: Run | None = None) -> None:
        """Go on to the last step."""
        end = self.lower.total
        while self.lower.step < end:
            self.step()
            if self.lower.step % self.settings.log_every == 0 or self.lower.step == self.lower.total:
                row = {**self.lower.averages.read(), "moved": moved(self.logits)}
                self.log.append({"step": self.lower.step, **row})
                if folder is not None:
                    folder.log(self.lower.step, **row)
            if folder is not None and (
                self.lower.step == end or self.lower.step % self.settings.checkpoint_every == 0
            ):
                self.save(folder)

    def save(self, folder: Run) -> None:
        """Keep both levels."""
        tree = {
            "lower": self.lower.state(),
            "logits": state.copies(self.logits),
            "upper": self.upper.state_dict(),
        }
        folder.save("latest", tree, {"step": self.lower.step})

    def restore(self, folder: Run) -> None:
        """Go on where the latest checkpoint was written."""
        tree = folder.load("latest")[0]
        self.lower.restore(tree["lower"])
        state.take_over(self.logits, tree["logits"])
        self.upper.load_state_dict(tree["upper"])
        folder.truncate(self.lower.step)
        self.log = folder.metrics()

    def run_in(self, folder: Path) -> None:
        """`run` in a folder, or going on with what it holds."""
        config = {
            "autolora": {
                **described(self.model, self.settings, [self.lower]),
                "hypergradient": of(self.method.hypergradient),
                "selection_lr": [self.method.lr, *self.method.betas],
            }
        }
        if not (folder / "config.json").exists():
            with Run.create(folder, config) as run:
                self.run(run)
            return
        with Run.open(folder) as run:
            refuse_difference("run_dir", run.config.get("autolora"), as_json(config)["autolora"])
            if run.checkpoint("latest").exists():
                with stored_in(run.checkpoint("latest")):
                    self.restore(run)
            self.run(run)


def moved(logits: Mapping[str, Tensor]) -> float:
    """How far the weights are from equal ones: the largest `|k alpha_j - 1|`.

    Example:
        >>> moved({"a": torch.zeros(3)})
        0.0
    """
    return max(float((len(value) * value.detach().softmax(0) - 1).abs().max()) for value in logits.values())


def warn_if_still(logits: Mapping[str, Tensor]) -> None:
    """Warn where the selection variables stand about where they began, so that the threshold rounds noise."""
    far = moved(logits)
    if far < MOVED or not math.isfinite(far):
        warnings.warn(
            f"the selection variables have hardly moved: the largest |k alpha - 1| is {far:.2g}, so ranks by the "
            "threshold 1/k say where noise stands, about k/2; more steps, or a larger AutoLoRARanks(lr=)",
            stacklevel=3,
        )

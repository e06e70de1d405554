"""What a fine-tuning comes to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.base.trees import mapped
from metapeft.training.finetuning.items import read_rows
from metapeft.training.finetuning.joint_step import JointStep
from metapeft.updates.attached import AttachedModel
from metapeft.updates.peft_export import export_peft


class Fitted:
    """A trained update, made by `mp.finetune`.

    Attributes:
        model: the attached backbone, whose weights are those of before.
        factors: the update, `name -> (1, ...)`, as `model(x, factors)` takes it: that of the best validation, where
            there was one, else the last.
        log: a dict a logged step: `step`, mean `loss` since the last, `validation_loss` and metrics.
        best_step: the step of the best validation; None without one.
        step: the steps that were made.

    Example:
        >>> import metapeft as mp
        >>> data = (torch.randn(8, 3), torch.arange(8) % 2)
        >>> fitted = mp.finetune(torch.nn.Linear(3, 2), data, format=mp.LoRA(1), steps=2)
        >>> fitted(torch.zeros(5, 3)).shape, fitted.step
        (torch.Size([5, 2]), 2)
    """

    def __init__(
        self,
        steps: JointStep,
        factors: Mapping[str, Tensor],
        log: list[dict[str, Any]],
        step: int,
        best_step: int | None,
    ) -> None:
        self.model: AttachedModel = steps.model
        self.factors = dict(factors)
        self.log, self.step, self.best_step = log, step, best_step
        self._steps = steps

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        """Outputs `(B, ...)` of inputs `(B, ...)`: a tensor, or a dict or tuple of them."""
        return self.model(mapped(x, lambda value: value.unsqueeze(0)), self.factors)[0]

    def evaluate(self, data: Any) -> dict[str, float]:
        """Mean loss and the metrics that the training was given, on any data that it takes.

        Args:
            data: as `mp.finetune` takes it.

        Returns: `{"loss": ..., <metric>: ...}`; the loss is a mean over rows, or over the tokens of all rows.
        """
        rows = read_rows(data, self.model.module, self._steps.settings.pad_id, "data")
        return self._steps.evaluated(self.factors, rows)

    def merged(self) -> nn.Module:
        """A plain copy of the backbone with the update inside, in eval mode."""
        return self.model.merged(self._one())

    def export_peft(self, folder: str | Path) -> None:
        """Write the update as an adapter folder that PEFT loads; see `mp.export_peft`."""
        export_peft(self.model, self._one(), folder)

    def _one(self) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.factors.items()}

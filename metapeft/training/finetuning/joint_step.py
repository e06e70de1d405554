"""Forwards and gradients of several adapters at once, on one frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.base.errors import NumericalError
from metapeft.base.machine.precision import forward_precision
from metapeft.base.trees import mapped, tree_leaves
from metapeft.learner.losses import row_loss
from metapeft.training.finetuning.adapter import Adapter
from metapeft.training.finetuning.metrics import counted, resolve_metrics, scored
from metapeft.training.finetuning.padding import together
from metapeft.training.finetuning.row_losses import sums
from metapeft.training.finetuning.rows import Batch, Rows
from metapeft.training.finetuning.settings import FineTuning
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import viewed
from metapeft.updates.layers.masks import Masks


class JointStep:
    """What T adapters on one backbone give together: as each of them alone would, in one forward.

    Args:
        model: the attached backbone. settings: loss, micro-batches, precision, dropout.

    Example:
        >>> import metapeft as mp
        >>> model = mp.attach(torch.nn.Linear(3, 2), mp.LoRA(1))
        >>> step = JointStep(model, FineTuning(steps=1))
        >>> batch = Batch(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
        >>> [value.shape for value in step.sums([model.factors()], [batch])]
        [torch.Size([1]), torch.Size([1])]
    """

    def __init__(self, model: AttachedModel, settings: FineTuning) -> None:
        self.model, self.settings = model, settings
        self.training_model = viewed(model, dropout=True) if settings.dropout else model
        self.loss, self.rows = settings.loss, row_loss(settings.loss)
        self.metrics = resolve_metrics(settings.metrics)
        self.like = next(iter(model.module.parameters()))

    def __call__(self, adapters: Sequence[Adapter]) -> None:
        """One step of every adapter, each on the next batch of its own.

        Raises:
            NumericalError: a loss that is not finite, with its adapter and step; nothing is moved then.
        """
        batches = [adapter.batch() for adapter in adapters]
        largest = max(map(len, batches))
        size = min(self.settings.micro_batch or largest, largest)
        step = adapters[0].step
        totals = torch.zeros(2, len(adapters), dtype=torch.float64)
        for start in range(0, largest, size):
            within = [i for i, batch in enumerate(batches) if len(batch) > start]
            parts = [batches[i].rows(slice(start, start + size)) for i in within]
            factors = [adapters[i].factors for i in within]
            values, weights = self.sums(factors, parts, (step, start) if self.settings.dropout else None)
            values.sum().backward()  # type: ignore[no-untyped-call]
            totals[0, within] += values.detach().double().cpu()
            totals[1, within] += weights.detach().double().cpu()
        for number, (adapter, value, weight) in enumerate(zip(adapters, *totals.tolist())):
            if not weight > 0:
                raise ValueError(
                    f"step {step + 1}: no row or token of the batch counts, all targets are -100"
                )
            if not math.isfinite(value):
                which = f" of adapter {number}" if len(adapters) > 1 else ""
                raise NumericalError(
                    f"step {adapter.step + 1}: the loss{which} is {value}; a smaller lr=, or NaN in the data?"
                )
        for adapter, value, weight in zip(adapters, *totals.tolist()):
            adapter.move(value / weight, weight)

    def sums(
        self,
        factors: Sequence[Mapping[str, Tensor]],
        batches: Sequence[Batch],
        drawn: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sums of losses and weights of each adapter's batch, `(T,)` both.

        Args:
            factors: of each adapter, `name -> (1, ...)`. batches: of each.
            drawn: step and first row, which dropout's masks depend on; None for no dropout.
        """
        x, y, there = self._gathered(batches)
        outputs = self._outputs(factors, x, drawn)
        flat = there.flatten().to(outputs.device)
        values, weights = sums(self.rows, self.loss, outputs.flatten(0, 1), y.flatten(0, 1), flat)
        tasks = len(batches)
        return values.view(tasks, -1).sum(1), weights.view(tasks, -1).sum(1)

    @torch.no_grad()
    def evaluated(self, factors: Mapping[str, Tensor], rows: Rows) -> dict[str, float]:
        """Mean loss and metrics of one adapter on data, without dropout; rows of one length go together."""
        size = self.settings.batch_size if rows.batch_size is None else rows.batch_size
        lengths = rows.lengths
        order = (
            range(len(rows)) if lengths is None else sorted(range(len(rows)), key=lambda row: lengths[row])
        )
        total, weight, kept = 0.0, 0.0, []
        for start in range(0, len(rows), size):
            batch = rows.batch(order[start : start + size])
            x, y, there = self._gathered([batch])
            outputs = self._outputs([factors], x, None)[0]
            values, weights = sums(self.rows, self.loss, outputs, y[0], there[0].to(outputs.device))
            total, weight = total + float(values.double().sum()), weight + float(weights.double().sum())
            if any(metric is not None for metric in self.metrics.values()):
                kept.append(counted(outputs, y[0]))
        if not weight > 0:
            raise ValueError("no row or token of the data counts: all targets are -100")
        outputs, y = (torch.cat(parts) for parts in zip(*kept)) if kept else (self.like, self.like)
        return {"loss": total / weight, **scored(self.metrics, total / weight, outputs, y)}

    def _gathered(self, batches: Sequence[Batch]) -> tuple[object, Tensor, Tensor]:
        x, y, there = together(batches, self.settings.pad_id)
        y = y.to(self.like.device)
        return x, y.to(self.like.dtype) if y.is_floating_point() else y, there

    def _outputs(
        self, factors: Sequence[Mapping[str, Tensor]], x: object, drawn: tuple[int, int] | None
    ) -> Tensor:
        """Outputs `(T, B, ...)`, in the precision of the weights."""
        joined = dict(factors[0])
        if len(factors) > 1:
            joined = {name: torch.cat([own[name] for own in factors]) for name in factors[0]}
        x = self.model.prepared(mapped(x, self._as_floats))
        with forward_precision(self.settings.autocast, self.like):
            if drawn is None:
                outputs = self.model(x, joined)
            else:
                outputs = self.training_model(x, joined, masks=self._masks(x, *drawn))
        return outputs.to(self.like.dtype)

    def _as_floats(self, value: Tensor) -> Tensor:
        return value.to(self.like.dtype) if value.dtype == torch.float64 else value

    def _masks(self, x: object, step: int, start: int) -> Masks:
        """Masks that depend on the seed, the step and the row in its batch, and on no other adapter."""
        tasks, count = tree_leaves(x)[0].shape[:2]
        key = counter.child(counter.root(self.settings.seed), np.array([step], dtype=np.uint64))
        keys = counter.words(key, start + count)[0, start:].view(np.int64)
        return Masks(torch.from_numpy(keys).to(self.like.device).repeat(tasks))

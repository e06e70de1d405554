"""The gradient of a batch of tasks, chunk by chunk: means that do not depend on how the batch is cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metapeft.base.errors import NotFiniteInput, NumericalError
from metapeft.training.running_statistics import Means, task_mean
from metapeft.training.task import Task


@dataclass(frozen=True)
class Accumulated:
    """Means over all tasks of a batch.

    Attributes:
        grads: name -> gradient. w: the inner variables of the last chunk.
        values: numbers for the log. statistics: batch norm -> mean and variance.
        kept: the share of the tasks that did not diverge, by which all of these are too small, until `of_those_left`;
            None where none may.
        diverged: how many did.
    """

    grads: dict[str, Tensor]
    w: Mapping[str, Tensor]
    values: dict[str, Tensor]
    statistics: Means
    kept: float | None = None
    diverged: int = 0

    def of_those_left(self, tasks: int) -> Accumulated:
        """Means over those of `tasks` tasks that did not diverge.

        Example:
            >>> import torch
            >>> half = Accumulated({"w": torch.tensor(1.0)}, {}, {}, {}, kept=0.5).of_those_left(8)
            >>> half.grads, half.diverged
            ({'w': tensor(2.)}, 4)
        """
        if self.kept is None or math.isclose(self.kept, 1.0, rel_tol=1e-9):
            return self
        return Accumulated(
            {name: grad / self.kept for name, grad in self.grads.items()},
            self.w,
            {name: value / self.kept for name, value in self.values.items()},
            {
                name: (mean / self.kept, variance / self.kept)
                for name, (mean, variance) in self.statistics.items()
            },
            diverged=round((1 - self.kept) * tasks),
        )


def accumulated(
    task: Task, batch: Any, chunk: int | None, w0: Mapping[str, Tensor] | None = None, skip: bool = False
) -> Accumulated:
    """Run `task.hypergradient` on `chunk` tasks at a time and average, each chunk weighted by its tasks.

    Args:
        batch: with `len()` and `.tasks(slice)` where `chunk` is given, or `skip`.
        chunk: tasks in one forward; None for all.
        w0: a start of the inner variables, without chunks.
        skip: whether a task that diverges is left out: the tasks of its chunk then go through one by one.

    Raises:
        NotFiniteInput: NaN or infinity in the batch, with the task's place in the whole of it.
        NumericalError: a number that is not finite; with `skip` if all tasks diverge.
    """
    pieces: list[tuple[Any, float]] = [(batch, 1.0)]
    if chunk is not None and chunk < len(batch):
        cuts = [batch.tasks(slice(i, i + chunk)) for i in range(0, len(batch), chunk)]
        pieces = [(piece, len(piece) / len(batch)) for piece in cuts]
    grads: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    statistics: dict[str, tuple[Tensor, Tensor]] = {}
    before, lost, last = 0, 0, None
    while pieces:
        piece, weight = pieces.pop(0)
        try:
            found = task.hypergradient(piece, w0)
        except NotFiniteInput as error:
            raise error.among(before) from None
        except NumericalError as error:
            if not skip or not hasattr(piece, "tasks"):
                raise
            if len(piece) > 1:
                single = [(piece.tasks(slice(i, i + 1)), weight / len(piece)) for i in range(len(piece))]
                pieces = single + pieces
                continue
            before, lost, last = before + 1, lost + 1, error
            continue
        w = found.w
        if pieces or before:
            before += len(piece)
        _add(grads, found.grads, weight)
        _add(values, {"loss": found.value, **_accuracy(found)}, weight)
        for name, (mean, variance) in task_mean(found.log.get("statistics") or {}).items():
            old = statistics.get(name)
            now = (mean * weight, variance * weight)
            statistics[name] = now if old is None else (old[0] + now[0], old[1] + now[1])
    if last is not None and lost == before:
        raise NumericalError(f"all {lost} tasks diverged, the last of them: {last}") from last
    kept = 1.0 if not lost else (before - lost) / before
    return Accumulated(grads, w, values, statistics, kept if skip else None)


def _accuracy(found: Any) -> dict[str, Tensor]:
    hits = found.log.get("accuracy")
    return {} if hits is None else {"accuracy": hits.mean()}


def _add(total: dict[str, Tensor], more: Mapping[str, Tensor], weight: float) -> None:
    for name, value in more.items():
        part = value if weight == 1.0 else value * weight
        total[name] = total[name] + part if name in total else part

"""The gradient of a batch of tasks, chunk by chunk: means that do not depend on how the batch is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metapeft.base.errors import NotFiniteInput
from metapeft.training.running_statistics import Means, task_mean
from metapeft.training.task import Task


@dataclass(frozen=True)
class Accumulated:
    """Means over all tasks of a batch.

    Attributes:
        grads: name -> gradient. w: the inner variables of the last chunk.
        values: numbers for the log. statistics: batch norm -> mean and variance.
    """

    grads: dict[str, Tensor]
    w: Mapping[str, Tensor]
    values: dict[str, Tensor]
    statistics: Means


def accumulated(
    task: Task, batch: Any, chunk: int | None, w0: Mapping[str, Tensor] | None = None
) -> Accumulated:
    """Run `task.hypergradient` on `chunk` tasks at a time and average, each chunk weighted by its tasks.

    Args:
        batch: with `len()` and `.tasks(slice)` where `chunk` is given.
        chunk: tasks in one forward; None for all.
        w0: a start of the inner variables, without chunks.

    Raises:
        NotFiniteInput: NaN or infinity in the batch, with the task's place in the whole of it.
    """
    pieces: list[tuple[Any, float]] = [(batch, 1.0)]
    if chunk is not None and chunk < len(batch):
        cuts = [batch.tasks(slice(i, i + chunk)) for i in range(0, len(batch), chunk)]
        pieces = [(piece, len(piece) / len(batch)) for piece in cuts]
    grads: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    statistics: dict[str, tuple[Tensor, Tensor]] = {}
    before = 0
    for piece, weight in pieces:
        try:
            found = task.hypergradient(piece, w0)
        except NotFiniteInput as error:
            raise error.among(before) from None
        if len(pieces) > 1:
            before += len(piece)
        _add(grads, found.grads, weight)
        _add(values, {"loss": found.value, **_accuracy(found)}, weight)
        for name, (mean, variance) in task_mean(found.log.get("statistics") or {}).items():
            old = statistics.get(name)
            now = (mean * weight, variance * weight)
            statistics[name] = now if old is None else (old[0] + now[0], old[1] + now[1])
    return Accumulated(grads, found.w, values, statistics)


def _accuracy(found: Any) -> dict[str, Tensor]:
    hits = found.log.get("accuracy")
    return {} if hits is None else {"accuracy": hits.mean()}


def _add(total: dict[str, Tensor], more: Mapping[str, Tensor], weight: float) -> None:
    for name, value in more.items():
        part = value if weight == 1.0 else value * weight
        total[name] = total[name] + part if name in total else part

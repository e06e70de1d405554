"""One gradient of the outer loop: within the memory that there is, and as a mean over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from metapeft.base.errors import NumericalError
from metapeft.base.machine.memory import is_out_of_memory, refuse_too_little, release
from metapeft.base.machine.processes import Processes, Share
from metapeft.inner.warm_start import WarmStart
from metapeft.learner.learner import Learner
from metapeft.training.accumulation import Accumulated, accumulated
from metapeft.training.chunking import Chunking, choose
from metapeft.training.evaluation import Evaluation, device_of, evaluated
from metapeft.training.task import Task

Found = TypeVar("Found")
_WELL, _TOO_LARGE, _NOT_FINITE = range(3)


def attempted(work: Callable[[], Found], processes: Processes) -> Found | None:
    """What `work()` returns; None on every rank if the memory of one was too little.

    Raises:
        NumericalError: on every rank, if one met a number that is not finite.

    Example:
        >>> attempted(lambda: 3, Processes())
        3
    """
    found: Found | None = None
    bad: NumericalError | None = None
    outcome = _WELL
    try:
        found = work()
    except NumericalError as error:
        bad, outcome = error, _NOT_FINITE
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        outcome = _TOO_LARGE
    outcome = processes.most(outcome)
    if outcome == _NOT_FINITE:
        raise bad or NumericalError("another rank met a number that is not finite, and says which")
    return found if outcome == _WELL else None


class OuterGradient:
    """Gradients of batches of tasks, in chunks that fit into the memory, averaged over all ranks.

    Args:
        tasks_per_step: of all ranks together.
        chunk: tasks in one forward; None to choose by `memory`.
        memory: bytes that this process may hold; None for what is free.
        warm_start: whether inner variables of all tasks are kept, so that they go through one forward.
        skip: whether tasks that diverge are left out.

    Attributes:
        chunking: what was chosen; None before the first batch. Checkpoints hold it.
        changed: whether it changed since it was last stored.
    """

    def __init__(
        self, tasks_per_step: int, chunk: int | None, memory: int | None, warm_start: bool, skip: bool = False
    ) -> None:
        self.skip = skip
        self.tasks, self.chunk, self.memory, self.whole = tasks_per_step, chunk, memory, warm_start
        self.chunking: Chunking | None = None
        self.changed = False

    def __call__(
        self,
        task: Task,
        batch: Any,
        share: Share,
        w0: Mapping[str, Tensor] | None,
        where: str,
        processes: Processes,
    ) -> Accumulated:
        """The means over all tasks of a step.

        Args:
            task: what is trained. batch: this rank's share of the tasks. w0: start of the inner variables.
            where: for messages, such as "outer step 3".

        Raises:
            MemoryError: memory is too little even for one task at a time.
            NumericalError: an objective or gradient that is not finite.
        """
        if self.chunking is None:
            self.chunking = self._first(task, batch, processes)
        while True:
            chosen = self.chunking
            view, chunk = chosen.view(task), chosen.chunk
            found = attempted(lambda: accumulated(view, batch, chunk, w0, self.skip), processes)  # noqa: B023
            if found is not None:
                try:
                    return averaged(found, share.weight, processes, task.trained).of_those_left(self.tasks)
                except (MemoryError, RuntimeError) as error:
                    refuse_too_little(
                        error, f"{where}: out of memory where the ranks' gradients are added up"
                    )
                    raise
            release(task.device)
            self._refuse_whole(task, batch, where)
            most = processes.share(0, self.tasks).count
            self.chunking, self.changed = chosen.halved(task, most, where), True

    def validate(
        self,
        learner: Learner,
        episodes: Any,
        count: int,
        where: str,
        processes: Processes,
        w0: WarmStart | None = None,
    ) -> dict[str, float]:
        """Mean loss over `count` episodes, and mean accuracy where there are classes; each rank takes a share.

        `w0`: inner variables to start from, in place of the learner's own starts.
        """
        share = processes.share(0, count)

        def scored(size: int) -> Evaluation:
            diverged = "count" if self.skip else "raise"
            return evaluated(
                learner,
                episodes,
                share.count,
                first=share.start,
                tasks_per_batch=size,
                w0=w0,
                diverged=diverged,
            )

        while True:
            size = (self.chunking or Chunking()).validation
            result = attempted(lambda: scored(size), processes)  # noqa: B023
            if result is not None:
                found = {"validation_loss": result.loss}
                if result.has_accuracy:
                    found = {"validation_accuracy": result.accuracy, **found}
                if self.skip:
                    found["validation_diverged"] = result.diverged / share.count
                numbers = {name: torch.tensor(v, dtype=torch.float64) for name, v in found.items()}
                means = {name: float(value) for name, value in processes.mean(numbers, share.weight).items()}
                if self.skip:
                    means["validation_diverged"] = round(means["validation_diverged"] * count)
                return means
            release(device_of(learner))
            self.chunking, self.changed = (self.chunking or Chunking()).validation_halved(where), True

    def _first(self, task: Task, batch: Any, processes: Processes) -> Chunking:
        unasked = self.tasks == 1 and self.memory is None  # then there is nothing to choose
        if self.chunk is not None or unasked or self.whole or not _can_be_cut(task, batch):
            return Chunking(self.chunk)
        return choose(task, batch, self.memory, task.device, processes)

    def _refuse_whole(self, task: Task, batch: Any, where: str) -> None:
        if self.whole:
            reason = "warm_start=True keeps all tasks in one forward: take a smaller tasks_per_step"
        elif task.undivided is not None:
            reason = f"{task.undivided}: take {task.smaller}"
        elif not _can_be_cut(task, batch):
            reason = f"a batch of type {type(batch).__name__} is not cut into chunks: it has no .tasks(slice)"
        else:
            return
        raise MemoryError(f"{where}: out of memory, and {reason}")


def averaged(
    found: Accumulated, weight: float, processes: Processes, trained: Mapping[str, Tensor]
) -> Accumulated:
    """The weighted sum over ranks of gradients, numbers and statistics; `w` stays that of this rank."""
    if processes.count == 1:
        return found
    own = {}
    for name, value in trained.items():  # a weight that is idle on one rank need not be so on another
        own[f"grads.{name}"] = found.grads[name] if name in found.grads else torch.zeros_like(value)
        own[f"reached.{name}"] = torch.tensor(float(name in found.grads))
    if found.kept is not None:
        own["kept"] = torch.tensor(found.kept, dtype=torch.float64)
    own |= {f"values.{name}": value for name, value in found.values.items()}
    for name, (mean, variance) in found.statistics.items():
        own |= {f"mean.{name}": mean, f"variance.{name}": variance}
    own = processes.mean(own, weight)
    return Accumulated(
        {name: own[f"grads.{name}"] for name in trained if own[f"reached.{name}"] > 0},
        found.w,
        {name: own[f"values.{name}"] for name in found.values},
        {name: (own[f"mean.{name}"], own[f"variance.{name}"]) for name in found.statistics},
        None if found.kept is None else float(own["kept"]),
    )


def _can_be_cut(task: Task, batch: Any) -> bool:
    return task.undivided is None and hasattr(batch, "tasks") and hasattr(batch, "__len__")

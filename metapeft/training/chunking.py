"""How many tasks go through one forward: the most that fit into the memory, measured on the first batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from metapeft.base.errors import NumericalError
from metapeft.base.machine.byte_units import shown_bytes
from metapeft.base.machine.memory import free_bytes, held_bytes, is_out_of_memory, peak_bytes, release
from metapeft.base.machine.processes import Processes
from metapeft.training.task import Task

log = logging.getLogger("metapeft")

# of what the process may hold beyond what it does: holes in the heap grow over the first steps
STATED_FRACTION = 0.8
# of what is free; the rest is for optimiser states, validation and other processes
FREE_FRACTION = 0.8
# episodes in one forward of a validation
EVALUATED = 8


@dataclass(frozen=True)
class Chunking:
    """What was chosen for a run; its checkpoints hold it.

    Attributes:
        chunk: tasks in one forward; None for all.
        recompute: whether the engine `"recompute"` stands in for `"unroll"`, of which it is the exact equal.
        validation: episodes in one forward of a validation.

    Example:
        >>> Chunking().halved(None, 16, "16 tasks").chunk
        8
    """

    chunk: int | None = None
    recompute: bool = False
    validation: int = EVALUATED

    def view(self, task: Task) -> Task:
        """The task with the chosen engine, sharing all tensors; the task itself is not changed."""
        return (task.recomputing() or task) if self.recompute else task

    def halved(self, task: Task, tasks: int, where: str) -> Chunking:
        """The next smaller choice after memory was too little.

        Args:
            task: what is trained. tasks: most tasks of a step on any rank. where: for the message.

        Raises:
            MemoryError: there is none.
        """
        now = tasks if self.chunk is None else min(self.chunk, tasks)
        if now > 1:
            log.warning("%s: out of memory with %d tasks in one forward, now %d", where, now, now // 2)
            return replace(self, chunk=now // 2)
        if not self.recompute and task.recomputing() is not None:
            log.warning("%s: out of memory with one task, now hypergradient recompute for unroll", where)
            return replace(self, chunk=1, recompute=True)
        raise MemoryError(f"{where}: out of memory with one task in one forward: take {task.smaller}")

    def validation_halved(self, where: str) -> Chunking:
        """As `halved`, for the episodes of a validation."""
        if self.validation == 1:
            raise MemoryError(f"{where}: out of memory with one episode: take fewer ways or queries")
        smaller = self.validation // 2
        log.warning(
            "%s: out of memory with %d episodes in one forward, now %d", where, self.validation, smaller
        )
        return replace(self, validation=smaller)


def choose(
    task: Task, batch: Any, memory: int | None, device: torch.device, processes: Processes
) -> Chunking:
    """The fewest forwards a step whose gradients fit into the memory, on every rank.

    Args:
        batch: the tasks of this rank in the first outer step.
        memory: bytes that the process may hold; None for what is free, divided by the ranks of the machine.
    """
    _tried(lambda: task.hypergradient(batch.tasks(slice(0, 1))))  # what the first call leaves counts as held
    if memory is None:
        room = FREE_FRACTION * free_bytes(device) / (1 if device.type == "cuda" else processes.neighbours)
    else:
        room = STATED_FRACTION * (memory - held_bytes(device))
    tasks, said = processes.most(len(batch)), shown_bytes(max(room, 0))

    def least_fitting(view: Task) -> int:
        own = _fitting(view, batch, room, device)
        return processes.least(tasks if own >= len(batch) else own)  # a smaller share that fits sets no limit

    fits, chosen = least_fitting(task), Chunking()
    if not fits and task.recomputing() is not None:
        log.warning("one task does not fit into %s: hypergradient recompute for unroll", said)
        chosen = Chunking(recompute=True)
        fits = least_fitting(chosen.view(task))
    if not fits:
        log.warning("one task does not fit into %s: it is tried all the same", said)
    if fits >= tasks:
        return chosen
    forwards = math.ceil(tasks / max(fits, 1))
    chunk = math.ceil(tasks / forwards)  # equal chunks: as many forwards in less memory
    log.info("%d of %d tasks in one forward, for a room of %s", chunk, tasks, said)
    return replace(chosen, chunk=chunk, validation=min(EVALUATED, chunk))


def _fitting(task: Task, batch: Any, room: float, device: torch.device) -> int:
    """How many of a batch's tasks fit into `room` bytes, by the measured peak of 1, 2, 4, ... tasks.

    m n tasks take at most m times the peak of n: less where something does not grow with the tasks, so the
    estimate errs on the safe side, and by less the more tasks were measured.
    """
    tasks, tried = len(batch), 1
    while True:
        piece = batch.tasks(slice(0, tried))
        work = partial(task.hypergradient, piece)
        # twice, for the second finds the holes that the first left
        outcome = _tried(lambda: [peak_bytes(work, device) for _ in range(2)])  # noqa: B023
        if isinstance(outcome, NumericalError):  # the step itself will say where
            return tasks
        if isinstance(outcome, Exception):
            release(device)
            return tried // 2
        if None in outcome:
            log.warning("this system does not tell what a step takes: all %d tasks go through at once", tasks)
            return tasks
        peak = max(outcome)
        fits = min(int(room * tried / max(peak, 1)), tasks) if room > 0 else 0
        if fits == tasks or fits < 2 * tried:
            return max(fits, tried // 2)
        tried *= 2


def _tried(work: Callable[[], Any]) -> Any:
    """What `work()` returns, or the error that it raised: too little memory, or numbers that are not finite."""
    try:
        return work()
    except NumericalError as error:
        return error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return error

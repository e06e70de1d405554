"""What a trainer refuses before it starts, each with the reason."""

from __future__ import annotations

from typing import Any

from metapeft.base.arguments import flag, number, whole
from metapeft.base.machine.processes import Processes
from metapeft.hypergradients.problem import Problem
from metapeft.training.problem_task import ProblemTask


def refuse_task(task: object, optimizer: object) -> None:
    """Raise ValueError for what a trainer cannot train, and for an optimiser that is not called.

    Example:
        >>> import torch
        >>> refuse_task(3, torch.optim.Adam)
        Traceback (most recent call last):
        ValueError: task is of type int: a trainer takes an mp.Learner or an mp.Problem
    """
    if not isinstance(task, Problem) and not hasattr(task, "trained"):
        raise ValueError(
            f"task is of type {type(task).__name__}: a trainer takes an mp.Learner or an mp.Problem"
        )
    if not callable(optimizer):
        raise ValueError(f"optimizer={optimizer!r}: a class is needed, such as torch.optim.Adam")


def refuse_settings(
    learner: Any,
    tasks_per_step: int,
    chunk: int | None,
    clip: float | None,
    warm_start: bool,
    inner_every: int,
    memory: int | str | None = None,
) -> None:
    """Raise ValueError for settings of a trainer that are out of range or do not go with its learner."""
    whole(tasks_per_step=tasks_per_step, chunk=1 if chunk is None else chunk, inner_every=inner_every)
    flag(warm_start=warm_start)
    if clip is not None:
        number(above=True, clip=clip)
    if chunk is not None and isinstance(learner, ProblemTask):
        raise ValueError(f"chunk={chunk}: a bilevel problem is not cut into tasks, so chunk has no effect")
    if warm_start and chunk is not None:
        raise ValueError("warm_start=True keeps the inner variables of all tasks: chunk has to be None")
    if memory is not None and (warm_start or isinstance(learner, ProblemTask)):
        what = (
            "warm_start=True keeps all tasks together"
            if warm_start
            else "a bilevel problem is not cut into tasks"
        )
        raise ValueError(f"memory={memory!r} has no effect: {what}")
    if inner_every > 1 and not (warm_start and isinstance(learner, ProblemTask) and learner.problem.solver):
        raise ValueError(
            f"inner_every={inner_every} holds the inner variables of a bilevel problem over several outer steps: "
            "it needs an mp.Problem with a solver, and warm_start=True"
        )
    if not learner.trained:
        raise ValueError("the learner trains nothing (outer=()): there is nothing to fit")
    if warm_start:
        _check_warm(learner)


def refuse_processes(learner: Any, warm_start: bool, processes: Processes) -> None:
    """Raise ValueError for what several processes cannot share out."""
    if processes.count == 1:
        return
    if isinstance(learner, ProblemTask):
        raise ValueError(
            f"{processes.count} processes: a bilevel problem is not cut into tasks, run it in one"
        )
    if warm_start:
        raise ValueError(
            f"warm_start=True keeps the inner variables of all tasks in one process, but there are {processes.count}"
        )


def _check_warm(learner: Any) -> None:
    """Starts that the kept inner variables replace get no gradient from the second step on."""
    if isinstance(learner, ProblemTask) or not hasattr(learner, "objectives"):
        return
    if learner.inner is None:
        raise ValueError("warm_start=True has no effect: this learner has no inner solver")
    for group in ("factors", "generator"):
        if group in learner.outer and learner.adapts_start(group):
            raise ValueError(
                f"warm_start=True goes on from the adapted factors, so the starts that "
                f'outer="{group}" trains get no gradient: take that group out, or leave warm_start'
            )


def _check_count(name: str, episodes: Any, wanted: int) -> None:
    count = getattr(episodes, "episodes", None)
    if isinstance(count, int) and count < wanted:
        raise ValueError(
            f"{name} has {count} episodes, the run takes {wanted}: a larger episodes= in its sampler"
        )

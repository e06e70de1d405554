"""What a trainer refuses before it starts, each with the reason."""

from __future__ import annotations

from metapeft.base.machine.processes import Processes
from metapeft.training.outer_settings import OuterSettings
from metapeft.training.projecting import named_by
from metapeft.training.task import Task


def refuse_settings(task: Task, settings: OuterSettings) -> None:
    """Raise ValueError for settings that do not go together, or not with what is trained.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients.problem import Problem
        >>> from metapeft.training.problem_task import ProblemTask
        >>> half = lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> task = ProblemTask(Problem(half, half, {"c": torch.tensor(3.0)}, {"x": torch.tensor(0.0)}))
        >>> refuse_settings(task, OuterSettings(torch.optim.SGD, chunk=2))
        Traceback (most recent call last):
        ValueError: chunk=2: a bilevel problem is not cut into tasks, so chunk has no effect
    """
    warm = settings.warm_start
    if settings.chunk is not None and task.undivided is not None:
        raise ValueError(f"chunk={settings.chunk}: {task.undivided}, so chunk has no effect")
    if warm and settings.chunk is not None:
        raise ValueError("warm_start=True keeps the inner variables of all tasks: chunk has to be None")
    together = "warm_start=True keeps all tasks together" if warm else task.undivided
    if settings.memory is not None and together is not None:
        raise ValueError(f"memory={settings.memory!r} has no effect: {together}")
    if settings.diverged == "skip" and together is not None:
        raise ValueError(f'diverged="skip" leaves out single tasks, but {together}: leave it out')
    named_by(settings.projections or {}, task.trained)
    if settings.direct_steps and task.direct() is None:
        raise ValueError(
            f"direct_steps={settings.direct_steps} has no effect: there is no inner loop to do without, or nothing to "
            "train without it"
        )
    if settings.direct_steps and settings.warm_start:
        raise ValueError(
            "direct_steps= begins without inner variables, of which warm_start=True goes on: leave one out"
        )
    if settings.inner_every > 1 and not (warm and task.held() is not None):
        raise ValueError(
            f"inner_every={settings.inner_every} holds the inner variables of a bilevel problem over several outer "
            "steps: it needs an mp.Problem with a solver, and warm_start=True"
        )
    if not task.trained:
        raise ValueError("the learner trains nothing (outer=()): there is nothing to fit")
    if warm:
        task.refuse_warm_start()
    elif getattr(task, "goes_on", False):
        raise ValueError(
            "this hypergradient goes on from what it kept (SOBA's linear solution), which without warm_start=True is 0 "
            "at every outer step: say warm_start=True"
        )


def refuse_processes(task: Task, warm_start: bool, processes: Processes) -> None:
    """Raise ValueError for what several processes cannot share out."""
    if processes.count == 1:
        return
    if task.undivided is not None:
        raise ValueError(f"{processes.count} processes: {task.undivided}, run it in one")
    if warm_start:
        raise ValueError(
            f"warm_start=True keeps the inner variables of all tasks in one process, but there are {processes.count}"
        )

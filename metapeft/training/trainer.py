"""The trainer: what it trains and how, its new runs, and those that go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import floating, whole
from metapeft.base.errors import stored_in
from metapeft.base.machine.devices import usable
from metapeft.base.machine.processes import processes
from metapeft.hypergradients.problem import Problem
from metapeft.inner.warm_start import WarmStart
from metapeft.learner.learner import Learner
from metapeft.training.averages import Averages
from metapeft.training.checks import refuse_processes, refuse_settings
from metapeft.training.learner_task import GivenTask, LearnerTask
from metapeft.training.outer_gradient import OuterGradient
from metapeft.training.outer_loop import OuterLoop
from metapeft.training.outer_settings import OuterSettings
from metapeft.training.plan import Plan
from metapeft.training.problem_task import ProblemTask
from metapeft.training.progress_bar import Told
from metapeft.training.runs import shared
from metapeft.training.task import Task


class BilevelTrainer:
    """Trains the outer variables of a learner, or of a bilevel problem, by their hypergradients.

    Args:
        task: a `Learner`, an `mp.Problem`, or a task of your own (see `metapeft.training.task`).
        optimizer: a class of `torch.optim`, called as `optimizer(groups, **options)`.
        lr: of all outer variables, or `{group: lr}` by the first part of their names, `"default"` for others.
        tasks_per_step: episodes an outer step; of all ranks together, where torchrun started several.
        chunk: how many of them go through one forward, gradients are accumulated; None for as many as fit.
        clip: largest norm of the whole outer gradient; None for no clipping.
        schedule: None, `"cosine"` (to 0 over the run), or a function `(optimizer, steps) -> torch scheduler`.
        warm_start: keep the inner variables, and the state of the solver, from one outer step to the next; `.inner`
            and checkpoints have them, and validation starts from them, episode i from those of task i modulo T.
        inner_every: outer steps a run of the inner solver, for a warm-started problem; between, w is held.
        options: of the optimiser, such as `{"betas": (0.5, 0.999)}`.
        progress: show a bar with loss, accuracy, tasks a second and the time left; or a function that is told of each
            step instead, `progress(made, total, numbers)`, the last a text.
        device, dtype: to which the learner is moved; None to leave it where it is. See `metapeft.base.machine.devices`.
        ema: decay of a moving average of the state, such as 0.999, which is validated and which the learner ends with;
            None for none.
        direct_steps: so many outer steps at the start are made without the inner loop (`learner.without_inner()`):
            where adapting repairs what a generator leaves undone, the generator learns little.
        projections: `{pattern: function}`: after each outer step the outer variables that a glob names, the first that
            does, become what the function makes of them, such as `{"c": mp.inner.Simplex()}`.
        diverged: `"raise"`, or `"skip"`: a task whose numbers are not finite is left out of its outer step and counted,
            in the log and as `.diverged`; a step without any task left ends the run.
        memory: what this process may hold, in bytes or as `"8GiB"`, for the choice of the chunk and, where one
            task is too much, of recompute instead of unroll; None for what is free. See docs/scale.md.

    Attributes:
        learner: what is trained. task: the same, as the trainer sees it. outer: the settings.
        loop: the current or last run. processes: this one among those that train together.

    Raises:
        ValueError: numbers out of range, unknown groups, a device that is not here, options without effect.

    Example:
        >>> import metapeft as mp
        >>> half = lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> outer = lambda u, w: (w["x"] - 1).square()
        >>> u, w0 = {"c": torch.tensor(3.0)}, {"x": torch.tensor(0.0)}
        >>> problem = mp.Problem(outer, half, u, w0, mp.inner.SGD(steps=9, lr=0.5))
        >>> trainer = BilevelTrainer(problem, torch.optim.SGD, lr=0.2, progress=False)
        >>> _ = trainer.fit(None, steps=40)
        >>> round(float(trainer.learner.trained["c"]), 2)
        1.0
    """

    def __init__(
        self,
        task: Any,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        lr: float | Mapping[str, float] = 1e-3,
        tasks_per_step: int = 16,
        chunk: int | None = None,
        clip: float | None = None,
        schedule: Any = None,
        warm_start: bool = False,
        inner_every: int = 1,
        options: Mapping[str, Any] | None = None,
        progress: bool | Told = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory: int | str | None = None,
        ema: float | None = None,
        direct_steps: int = 0,
        projections: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        diverged: str = "raise",
    ) -> None:
        self.processes = processes()  # first, for it says which GPU is this process's own
        device = None if device is None else usable(device)
        floating(dtype)
        self.task = as_task(task, device, dtype)
        self.outer = OuterSettings(
            optimizer, lr=lr, tasks_per_step=tasks_per_step, chunk=chunk, clip=clip, schedule=schedule,
            warm_start=warm_start, inner_every=inner_every, options=options, memory=memory, progress=progress,
            ema=ema, direct_steps=direct_steps, projections=projections, diverged=diverged,
        )  # fmt: skip
        refuse_settings(self.task, self.outer)
        refuse_processes(self.task, warm_start, self.processes)
        self.loop = OuterLoop(self.task, self.outer, self.processes)

    @property
    def learner(self) -> Any:
        """What is trained: the learner that was given, or copies of a problem's outer variables."""
        return self.task.given if isinstance(self.task, GivenTask) else self.task

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the run, a new one for each `fit`."""
        return self.loop.optimizer

    @property
    def gradient(self) -> OuterGradient:
        """What takes the gradients of the run; `.chunking` says in which chunks."""
        return self.loop.gradient

    @property
    def averages(self) -> Averages:
        """Means of the run's numbers since its last logged row."""
        return self.loop.averages

    @property
    def step(self) -> int:
        """The outer steps that the run has made."""
        return self.loop.step

    @property
    def diverged(self) -> int:
        """How many tasks the run has left out, with `diverged="skip"`."""
        return self.loop.diverged

    @property
    def best(self) -> float | None:
        """The best validation score of the run; None without one."""
        return self.loop.best

    def __repr__(self) -> str:
        lr = dict(self.outer.lr) if isinstance(self.outer.lr, Mapping) else self.outer.lr
        made = f"step {self.step} of {self.loop.steps}" if self.loop.steps else "not begun"
        return (
            f"BilevelTrainer({getattr(self.learner, 'name', type(self.learner).__name__)}, "
            f"{type(self.optimizer).__name__}, lr={lr}, {self.outer.tasks_per_step} tasks a step; {made})"
        )

    @property
    def inner(self) -> WarmStart | None:
        """The inner variables `(T, ...)` that `warm_start=True` keeps, with the solver's state; None before a step.

        They start adaptations, `learner.adapt(x, y, steps=0, w0=trainer.inner.task(0))` (an `Adapted`, which predicts,
        exports and has the updates for `mp.ranks`), and evaluations, `mp.evaluate(learner, sampler, w0=trainer.inner)`.
        """
        return self.loop.inner

    def settings(self) -> dict[str, Any]:
        """Everything that the outcome depends on, as JSON can say it."""
        return self.outer.as_json(self.optimizer)

    @staticmethod
    def has_run(run_dir: str | Path) -> bool:
        """Whether a folder holds a run that can be resumed; among ranks, all have to ask."""
        return shared.exists(run_dir, processes())

    def fit(
        self,
        episodes: Any,
        steps: int,
        validation: Any = None,
        run_dir: str | Path | None = None,
        *,
        validate_every: int = 200,
        validation_episodes: int = 200,
        checkpoint_every: int = 100,
        log_every: int = 10,
        validate_start: bool = False,
        stop_at: int | None = None,
        tensorboard: bool = False,
    ) -> list[dict[str, Any]]:
        """Train for `steps` outer steps, with a fresh optimiser.

        Args:
            episodes: anything with `.batch(start, count)`, such as an `EpisodeSampler`; step k takes
                episodes `k * tasks_per_step ..`. None for a problem without data; a problem's batches are
                `(inner, outer)`.
            validation: a sampler on validation classes; the learner ends with the best state found there.
            run_dir: a new folder for config, metrics and checkpoints; None to keep nothing.
            validate_every, checkpoint_every, log_every: in outer steps. validation_episodes: how many.
            validate_start: also validate before the first step, so that the start can be the best state.
            stop_at: stop before this step although the schedule is for `steps`; `resume` goes on.
            tensorboard: also write the metrics as event files into the run folder.

        Returns: the log, one dict a logged step.

        Raises:
            RunError: a folder that holds another run or cannot be written.
            NumericalError: a non-finite gradient; the message names the episodes, the last checkpoint stays.
            MemoryError: memory is too little even for one task in one forward.
            ConnectionError: another rank died; the last checkpoint stays.
            KeyboardInterrupt: after Ctrl-C, when the step that was running is finished and kept.
            SystemExit: after SIGTERM, likewise.
        """
        plan = Plan(steps, validate_every, validation_episodes, checkpoint_every, log_every, validate_start)
        plan.check(self.task, self.outer.tasks_per_step, episodes, validation, run_dir, tensorboard)
        whole(0, stop_at=0 if stop_at is None else stop_at)
        self.loop = OuterLoop(self.task, self.outer, self.processes, steps)
        if self.processes.count > 1:
            self.task.load_state(self.processes.align(self.task.state()))
        if run_dir is None:
            return self.loop.run(episodes, validation, None, plan, [], stop_at)
        config = plan.config(self.task, self.settings(), episodes, validation)
        with shared.created(run_dir, config, self.processes) as run:
            self.loop.save(run)
            return self.loop.run(episodes, validation, run, plan, [], stop_at, tensorboard)

    def resume(
        self,
        run_dir: str | Path,
        episodes: Any = None,
        validation: Any = None,
        stop_at: int | None = None,
        *,
        tensorboard: bool = False,
    ) -> list[dict[str, Any]]:
        """Go on with a run from its last checkpoint, to the same end, bit for bit, as if it never stopped.

        Args:
            run_dir: what `fit` was given.
            episodes, validation: the same as there; None where they can be built from what the run stores
                (an `EpisodeSampler` on data that `load_dataset` reads).
            stop_at, tensorboard: as in `fit`.

        Raises:
            RunError: no such run, or one in use.
            ValueError: a trainer, learner or episodes other than the run was started with.
        """
        whole(0, stop_at=0 if stop_at is None else stop_at)
        with shared.opened(run_dir, self.processes) as run:
            with stored_in(run.folder / "config.json"):
                plan, episodes, validation = Plan.restored(
                    self.task, self.settings(), run.config, episodes, validation
                )
            self.loop = OuterLoop(self.task, self.outer, self.processes, plan.steps)
            if self.processes.decided(run.checkpoint("latest").exists):
                with stored_in(run.checkpoint("latest")):
                    self.loop.restore(run)
            else:  # killed before the first one
                plan.check_start(self.task, run.config)
                self.loop.save(run)
            run.truncate(self.loop.step)
            return self.loop.run(episodes, validation, run, plan, list(run.metrics()), stop_at, tensorboard)


def as_task(given: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Task:
    """What a trainer was given as the task that it trains, moved where it was asked to be.

    Raises:
        ValueError: what cannot be trained.

    Example:
        >>> as_task(3)
        Traceback (most recent call last):
        ValueError: task is of type int: a trainer takes an mp.Learner or an mp.Problem
    """
    if isinstance(given, Problem):
        return ProblemTask(given, device, dtype)
    if not hasattr(given, "trained"):
        raise ValueError(
            f"task is of type {type(given).__name__}: a trainer takes an mp.Learner or an mp.Problem"
        )
    if device is not None or dtype is not None:
        given.to(device, dtype)
    if isinstance(given, Task):
        return given
    return LearnerTask(given) if isinstance(given, Learner) else GivenTask(given)

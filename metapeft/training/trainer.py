"""The outer loop: gradients of batches of tasks, an optimiser, validation, a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import by_name, floating, whole
from metapeft.base.errors import NotFiniteInput, NumericalError, stored_in
from metapeft.base.machine.byte_units import parse_bytes
from metapeft.base.machine.devices import usable
from metapeft.base.machine.memory import refuse_too_little
from metapeft.base.machine.processes import Share, processes
from metapeft.hypergradients.problem import Problem
from metapeft.training.checks import refuse_processes, refuse_settings, refuse_task
from metapeft.training.chunking import Chunking
from metapeft.training.optimizer import made_optimizer, resolve_schedule
from metapeft.training.outer_gradient import OuterGradient
from metapeft.training.outer_loop import Averages, as_begun, note_other_processes, run_loop
from metapeft.training.plan import Plan
from metapeft.training.problem_task import ProblemTask
from metapeft.training.running_statistics import move_buffers
from metapeft.training.runs import shared as shared_run
from metapeft.training.runs.run import Run
from metapeft.updates.layers.compiled.switch import in_use


class BilevelTrainer:
    """Trains the outer variables of a learner, or of a bilevel problem, by their hypergradients.

    Args:
        task: a `Learner`, an `mp.Problem`, or what has their methods (see `Pretraining`).
        optimizer: a class of `torch.optim`, called as `optimizer(groups, **options)`.
        lr: of all outer variables, or `{group: lr}` by the first part of their names, `"default"` for others.
        tasks_per_step: episodes an outer step; of all ranks together, where torchrun started several.
        chunk: how many of them go through one forward, gradients are accumulated; None for as many as fit.
        clip: largest norm of the whole outer gradient; None for no clipping.
        schedule: None, `"cosine"` (to 0 over the run), or a function `(optimizer, steps) -> torch scheduler`.
        warm_start: keep the inner variables from one outer step to the next; a checkpoint has them.
        inner_every: outer steps a run of the inner solver, for a warm-started problem; between, w is held.
        options: of the optimiser, such as `{"betas": (0.5, 0.999)}`.
        progress: show a bar with loss, accuracy, tasks a second and the time left.
        device, dtype: to which the learner is moved; None to leave it where it is. See `metapeft.base.machine.devices`.
        memory: what this process may hold, in bytes or as `"8GiB"`, for the choice of the chunk and, where one
            task is too much, of recompute instead of unroll; None for what is free. See docs/scale.md.

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
        progress: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory: int | str | None = None,
    ) -> None:
        self.processes = processes()  # first, for it says which GPU is this process's own
        device = None if device is None else usable(device)
        floating(dtype)
        refuse_task(task, optimizer)
        if not isinstance(task, Problem) and (device is not None or dtype is not None):
            task.to(device, dtype)
        self.learner: Any = ProblemTask(task, device, dtype) if isinstance(task, Problem) else task
        refuse_settings(self.learner, tasks_per_step, chunk, clip, warm_start, inner_every, memory)
        refuse_processes(self.learner, warm_start, self.processes)
        self.memory = None if memory is None else parse_bytes(memory)
        self.tasks_per_step, self.chunk, self.clip = tasks_per_step, chunk, clip
        self.inner_every = inner_every
        self.schedule, self.warm_start, self.show = schedule, warm_start, progress
        by_name("settings", options=options or {})
        self.lr, self.options, self._make = lr, dict(options or {}), optimizer
        self._start(0)

    def settings(self) -> dict[str, Any]:
        """Everything that the outcome depends on, as JSON can say it."""
        custom = self.schedule is not None and not isinstance(self.schedule, str)
        return {
            "optimizer": type(self.optimizer).__name__,
            "options": {name: list(v) if isinstance(v, tuple) else v for name, v in self.options.items()},
            "lr": dict(self.lr) if isinstance(self.lr, Mapping) else self.lr,
            "tasks_per_step": self.tasks_per_step,
            "chunk": self.chunk,
            "clip": self.clip,
            "schedule": "custom" if custom else self.schedule,
            "warm_start": self.warm_start,
            "inner_every": self.inner_every,
            "memory": self.memory,
        }

    @staticmethod
    def has_run(run_dir: str | Path) -> bool:
        """Whether a folder holds a run that can be resumed; among ranks, all have to ask."""
        return shared_run.exists(run_dir, processes())

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
        """
        plan = Plan(steps, validate_every, validation_episodes, checkpoint_every, log_every, validate_start)
        plan.check(self, episodes, validation, run_dir, tensorboard)
        whole(0, stop_at=0 if stop_at is None else stop_at)
        self._start(steps)
        if self.processes.count > 1:
            self.learner.load_state(self.processes.align(self.learner.state()))
        if run_dir is None:
            return run_loop(self, episodes, validation, None, plan, [], stop_at)
        with shared_run.created(run_dir, plan.config(self, episodes, validation), self.processes) as run:
            self.save(run)
            return run_loop(self, episodes, validation, run, plan, [], stop_at, tensorboard)

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
        with shared_run.opened(run_dir, self.processes) as run:
            with stored_in(run.folder / "config.json"):
                plan, episodes, validation = Plan.restored(self, run.config, episodes, validation)
            self._start(plan.steps)
            if self.processes.decided(run.checkpoint("latest").exists):
                with stored_in(run.checkpoint("latest")):
                    self._restore(run.load("latest")[0])
            else:  # killed before the first one
                plan.check_start(self, run.config)
                self.save(run)
            run.truncate(self.step)
            return run_loop(self, episodes, validation, run, plan, list(run.metrics()), stop_at, tensorboard)

    # --- one run, as its loop drives it ---------------------------------------------------------------------

    def _start(self, steps: int) -> None:
        self.optimizer = made_optimizer(self._make, self.learner.trained, self.lr, self.options)
        self.steps, self.step = steps, 0
        self.compiled = in_use()
        self.best: float | None = None
        self._inner: Mapping[str, Tensor] | None = None
        self.averages = Averages()
        self.gradient = OuterGradient(self.tasks_per_step, self.chunk, self.memory, self.warm_start)
        self._scheduler = resolve_schedule(self.schedule, self.optimizer, steps)

    def share(self, step: int) -> Share:
        """The episodes of an outer step that this rank takes."""
        return self.processes.share(step * self.tasks_per_step, self.tasks_per_step)

    def outer_step(self, batch: Any) -> None:
        """One step of the optimiser on the gradient of a batch, this rank's share of the tasks."""
        task = self.learner if self.step % self.inner_every == 0 else self.learner.held()
        share, where = self.share(self.step), f"outer step {self.step + 1}"
        try:
            found = self.gradient(task, batch, share, self._inner, where, self.processes)
        except NumericalError as error:
            where += f", episodes {share.start} to {share.start + share.count - 1}"
            said = error.of_episode(share.start + error.task) if isinstance(error, NotFiniteInput) else error
            raise NumericalError(f"{where}: {said}. The last checkpoint is kept.") from error
        self._inner = found.w if self.warm_start else None
        trained: dict[str, Tensor] = self.learner.trained
        for name, value in trained.items():
            value.grad = found.grads[name]
        try:
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(list(trained.values()), self.clip)
            self.optimizer.step()
        except (MemoryError, RuntimeError) as error:
            refuse_too_little(
                error,
                f"{where}: out of memory in the step of {type(self.optimizer).__name__}, whose states stay with "
                "it: state a smaller memory=, or take an optimiser that keeps less. The last checkpoint is kept.",
            )
            raise
        self.optimizer.zero_grad(set_to_none=True)
        if found.statistics:
            move_buffers(self.learner.model.module, found.statistics)
        if self._scheduler is not None:
            self._scheduler.step()
        self.step += 1
        self.averages.add({name: float(value) for name, value in found.values.items()})

    def validate(self, validation: Any, episodes: int) -> tuple[float, dict[str, float]]:
        """The score (accuracy, or minus the loss) and the numbers for the log."""
        where = f"validation after outer step {self.step}"
        try:
            found = self.gradient.validate(self.learner, validation, episodes, where, self.processes)
        except NumericalError as error:
            raise NumericalError(f"{where}: {error}") from error
        return found.get("validation_accuracy", -found["validation_loss"]), found

    def save(self, run: Run) -> None:
        """Keep everything that the rest of the run depends on as the run's latest checkpoint."""
        tree = {
            "step": self.step,
            "best": self.best,
            "sums": self.averages.sums,
            "learner": self.learner.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "inner": self._inner,
            "chunking": None if self.gradient.chunking is None else asdict(self.gradient.chunking),
            "processes": self.processes.count,
            "compiled": self.compiled,
        }
        run.save("latest", tree, {"step": self.step})
        self.gradient.changed = False

    def _restore(self, tree: dict[str, Any]) -> None:
        self.step, self.best, self.averages.sums = tree["step"], tree["best"], tree["sums"]
        device, inner = next(iter(self.learner.trained.values())).device, tree["inner"]
        self._inner = None if inner is None else {name: value.to(device) for name, value in inner.items()}
        self.learner.load_state(tree["learner"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(tree["scheduler"])
        if (chosen := tree.get("chunking")) is not None:
            self.gradient.chunking = Chunking(**chosen)
        note_other_processes(tree.get("processes", 1), self.processes)
        self.compiled = as_begun(bool(tree.get("compiled")), self.processes)

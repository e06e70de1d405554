"""One run of the outer loop: batches in; steps, rows, validation and checkpoints out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from metapeft.base.errors import NotFiniteInput, NumericalError, stored_in
from metapeft.base.machine.ctrl_c import Interruption
from metapeft.base.machine.freed_memory import freed_memory_kept
from metapeft.base.machine.memory import refuse_too_little
from metapeft.base.machine.processes import Processes, Share
from metapeft.inner.warm_start import WarmStart
from metapeft.training.averages import Averages
from metapeft.training.chunking import Chunking
from metapeft.training.drawing_ahead import drawn_ahead
from metapeft.training.image_groups import ImageGroupSampler
from metapeft.training.moving_average import MovingAverage
from metapeft.training.optimizer import made_optimizer, resolve_schedule
from metapeft.training.outer_gradient import OuterGradient
from metapeft.training.outer_settings import OuterSettings
from metapeft.training.plan import NO_LEARNER, Plan
from metapeft.training.progress_bar import Progress
from metapeft.training.projecting import named_by, project
from metapeft.training.running_statistics import move_buffers
from metapeft.training.runs import kept_inner
from metapeft.training.runs.run import Run
from metapeft.training.task import Task
from metapeft.training.tensorboard import Board
from metapeft.updates.layers.compiled.switch import compiled_used, in_use

_log = logging.getLogger("metapeft")


class OuterLoop:
    """One run, from its first step to its last: what it has come to, and how it goes on.

    Args:
        task: what is trained. settings: how. processes: this process among those that train together.
        steps: of the whole run, for the schedule.

    Attributes:
        step: the outer steps that were made.
        diverged: how many tasks were left out.
        best: the best validation score, None before the first.
        moving: the moving average of the state; None for none.
        inner: the inner variables of the last step, where they are kept for the next.
        optimizer, scheduler, gradient, averages: what makes a step, and means of its numbers since the last row.
        compiled: whether it is computed with compiled kernels.
    """

    def __init__(self, task: Task, settings: OuterSettings, processes: Processes, steps: int = 0) -> None:
        self.task, self.settings, self.processes, self.steps = task, settings, processes, steps
        self.optimizer = made_optimizer(settings.optimizer, task.trained, settings.lr, settings.options or {})
        self.scheduler = resolve_schedule(settings.schedule, self.optimizer, steps)
        self.gradient = OuterGradient(
            settings.tasks_per_step,
            settings.chunk,
            settings.memory_bytes,
            settings.warm_start,
            skip=settings.diverged == "skip",
        )
        self.projections = named_by(settings.projections or {}, task.trained)
        self.averages = Averages()
        self.compiled = in_use()
        self.step = 0
        self.diverged = 0
        self.best: float | None = None
        self.inner: WarmStart | None = None
        self.moving = None if settings.ema is None else MovingAverage(settings.ema, task.state())
        self._best_state: Mapping[str, Tensor] | None = None
        self._best_inner: WarmStart | None = None

    def share(self, step: int) -> Share:
        """The episodes of an outer step that this process takes."""
        return self.processes.share(step * self.settings.tasks_per_step, self.settings.tasks_per_step)

    def outer_step(self, batch: Any) -> None:
        """One step of the optimiser on the gradient of a batch, this process's share of the tasks.

        Raises:
            NumericalError: an objective or gradient that is not finite. MemoryError: too little for one task.
        """
        held = self.task.held() if self.step % self.settings.inner_every else None
        if self.step < self.settings.direct_steps:
            held = self.task.direct()
        elif self.step == self.settings.direct_steps > 0:
            self.gradient.chunking = None  # which was of steps that need less
        share, where = self.share(self.step), f"outer step {self.step + 1}"
        w0 = self.inner
        if w0 is None and self.settings.warm_start and self.task.keeps_state:
            w0 = WarmStart({})
        try:
            task = (held or self.task).at(self.step)
            found = self.gradient(task, batch, share, w0, where, self.processes)
        except NumericalError as error:
            where += f", episodes {share.start} to {share.start + share.count - 1}"
            said = error.of_episode(share.start + error.task) if isinstance(error, NotFiniteInput) else error
            raise NumericalError(f"{where}: {said}. The last checkpoint is kept.") from error
        if self.settings.warm_start:
            before, self.inner = self.inner, kept_inner.kept(found.w)
            kept_inner.note_fresh(before, self.inner)
        self._move(found.grads, where)
        if found.statistics and self.task.backbone is not None:
            move_buffers(self.task.backbone, found.statistics)
        if self.scheduler is not None:
            self.scheduler.step()
        self.step += 1
        if self.moving is not None:
            self.moving.add(self.task.state(), self.step)
        self.diverged += found.diverged
        counted = {"diverged": float(found.diverged)} if self.settings.diverged == "skip" else {}
        self.averages.add({name: float(value) for name, value in found.values.items()} | counted)

    def _move(self, grads: Mapping[str, Tensor], where: str) -> None:
        """The optimiser's step on the clipped gradient."""
        trained = self.task.trained
        for name, value in trained.items():
            value.grad = grads.get(name)  # None: no loss reaches it, and the optimiser leaves it alone
        try:
            if self.settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(list(trained.values()), self.settings.clip)
            self.optimizer.step()
        except (MemoryError, RuntimeError) as error:
            refuse_too_little(
                error,
                f"{where}: out of memory in the step of {type(self.optimizer).__name__}, whose states stay with "
                "it: state a smaller memory=, or take an optimiser that keeps less. The last checkpoint is kept.",
            )
            raise
        self.optimizer.zero_grad(set_to_none=True)
        project(trained, self.projections)

    def validate(self, validation: Any, episodes: int) -> tuple[float, dict[str, float]]:
        """The score (accuracy, or minus the loss) and the numbers for the log."""
        learner, where = self.task.learner, f"validation after outer step {self.step}"
        if learner is None:
            raise ValueError(NO_LEARNER)
        try:
            found = self.gradient.validate(learner, validation, episodes, where, self.processes, self.inner)
        except NumericalError as error:
            raise NumericalError(f"{where}: {error}") from error
        return found.get("validation_accuracy", -found["validation_loss"]), found

    def save(self, run: Run) -> None:
        """Keep everything that the rest of the run depends on as the run's latest checkpoint."""
        tree = {
            "step": self.step,
            "best": self.best,
            "sums": self.averages.sums,
            "learner": self.task.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            **kept_inner.stored(self.inner),
            "chunking": None if self.gradient.chunking is None else asdict(self.gradient.chunking),
            "processes": self.processes.count,
            "compiled": self.compiled,
        }
        if self.diverged:
            tree["diverged"] = self.diverged
        if self.moving is not None:
            tree["moving"] = self.moving.state
        run.save("latest", tree, {"step": self.step})
        self.gradient.changed = False

    def restore(self, run: Run) -> None:
        """Go on where the run's latest checkpoint was written."""
        tree = run.load("latest")[0]
        self.step, self.best, self.averages.sums = tree["step"], tree["best"], tree["sums"]
        device, self.diverged = self.task.device, tree.get("diverged", 0)
        self.inner = kept_inner.restored(tree, device)
        kept_inner.refuse_missing(tree["learner"], self.task.state())
        self.task.load_state(tree["learner"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(tree["scheduler"])
        if self.moving is not None:
            self.moving = MovingAverage(
                self.moving.decay, {name: value.to(device) for name, value in tree["moving"].items()}
            )
        if (chosen := tree.get("chunking")) is not None:
            self.gradient.chunking = Chunking(**chosen)
        self._note_changes(tree.get("processes", 1), bool(tree.get("compiled")))

    def _note_changes(self, processes: int, compiled: bool) -> None:
        """Say where this is another number of processes than the checkpoint's; with kernels it goes on as begun."""
        self.compiled = compiled
        if self.processes.main and processes != self.processes.count:
            _log.warning(
                "%d processes go on where %d stopped: the same means up to rounding, not the same bits",
                self.processes.count,
                processes,
            )
        if self.processes.main and compiled != in_use():
            begun = "with" if compiled else "without"
            _log.warning("this run was begun %s compiled kernels, and goes on so", begun)

    def run(
        self,
        episodes: Any,
        validation: Any,
        folder: Run | None,
        plan: Plan,
        log: list[dict[str, Any]],
        stop_at: int | None = None,
        tensorboard: bool = False,
    ) -> list[dict[str, Any]]:
        """Go on from this step to the end or to `stop_at`; returns the log with the rows added.

        Args:
            episodes, validation, stop_at, tensorboard: as `BilevelTrainer.fit` has them.
            folder: the run folder; None to keep nothing. plan: when to log, validate and keep.
            log: the rows up to this step.
        """
        end = self.steps if stop_at is None else min(stop_at, self.steps)
        if folder is not None and self.best is not None:
            best = folder.load("best")[0]
            with stored_in(folder.checkpoint("best")):
                self._best_state = kept_inner.state_of_best(best)
                kept_inner.refuse_missing(self._best_state, self.task.state())
                self._best_inner = kept_inner.restored(best, self.task.device)
        shown = self.settings.progress if self.processes.main else False
        each, counted = (episodes.size, "images") if isinstance(episodes, ImageGroupSampler) else (1, "tasks")
        bar = Progress(shown, self.steps, self.step, each * self.settings.tasks_per_step, counted)
        board = Board(
            folder.folder if folder is not None and tensorboard and self.processes.main else None, self.step
        )

        def logged(row: dict[str, Any]) -> None:
            log.append({"step": self.step, **row})
            board.add(self.step, row)
            if folder is not None:
                folder.log(self.step, **row)

        self.processes.wait()  # until all have read what rank 0 is about to replace
        with freed_memory_kept(), compiled_used(self.compiled), bar, board, Interruption() as interruption:
            if plan.validate_start and self.step == 0 and self.best is None:
                found = self._validated(validation, plan.validation_episodes, folder)
                if not log:  # a run that was killed right here has the row already
                    logged(found)
                if folder is not None:
                    self.save(folder)
            with closing(drawn_ahead(episodes, self.share, self.step, end)) as batches:
                for batch in batches:
                    self.outer_step(batch)
                    last = self.step == self.steps
                    if last and self.moving is not None:
                        self.task.load_state(self.moving.state)
                    row = self.averages.read() if last or self.step % plan.log_every == 0 else {}
                    if validation is not None and (last or self.step % plan.validate_every == 0):
                        row.update(self._validated(validation, plan.validation_episodes, folder))
                    if row:
                        logged(row)
                    stopped = bool(self.processes.most(int(interruption.asked))) and not last
                    due = stopped or self.step == end or self.step % plan.checkpoint_every == 0
                    if folder is not None and (due or self.gradient.changed):
                        self.save(folder)
                    bar.advance(row)
                    if stopped:
                        interruption.stop(plan.farewell(self.step, folder))
        self.processes.wait()  # until what rank 0 wrote is there for all
        if self._best_state is not None and self.step == self.steps:
            self.task.load_state(self._best_state)
            self.inner = self._best_inner or self.inner
        return log

    def _validated(self, validation: Any, episodes: int, folder: Run | None) -> dict[str, float]:
        """Validate, and keep the state if it is the best so far; returns the numbers for the log."""
        with nullcontext() if self.moving is None else self.moving.used(self.task):
            score, found = self.validate(validation, episodes)
            if self.best is None or score > self.best:
                self.best, self._best_state, self._best_inner = score, self.task.state(), self.inner
                if folder is not None:
                    tree = kept_inner.of_best(self._best_state, self.inner)
                    folder.save("best", tree, {"step": self.step})
        return found

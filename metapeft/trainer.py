"""The outer loop: gradients of batches of tasks, an optimiser, validation, a run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metapeft.accumulation import accumulated
from metapeft.board import Board
from metapeft.buffers import move_buffers
from metapeft.errors import NumericalError
from metapeft.evaluation import evaluate
from metapeft.fitting import Plan, parameter_groups, refuse_optimizer, refuse_settings
from metapeft.hypergradients.problem import Problem
from metapeft.interruption import Interruption
from metapeft.problem_task import ProblemTask
from metapeft.progress import Progress
from metapeft.runs import Run
from metapeft.schedules import resolve_schedule


class BilevelTrainer:
    """Trains the outer variables of a learner, or of a bilevel problem, by their hypergradients.

    Args:
        task: a `Learner`, an `mp.Problem`, or what has their methods (see `Pretraining`).
        optimizer: a class of `torch.optim`, called as `optimizer(groups, **options)`.
        lr: of all outer variables, or `{group: lr}` by the first part of their names, `"default"` for others.
        tasks_per_step: episodes an outer step.
        chunk: how many of them go through one forward; None for all. Gradients are accumulated.
        clip: largest norm of the whole outer gradient; None for no clipping.
        schedule: None, `"cosine"` (to 0 over the run), or a function `(optimizer, steps) -> torch scheduler`.
        warm_start: keep the inner variables from one outer step to the next; a checkpoint has them.
        inner_every: outer steps a run of the inner solver, for a warm-started problem; between, w is held.
        options: of the optimiser, such as `{"betas": (0.5, 0.999)}`.
        progress: show a bar with loss, accuracy, tasks a second and the time left.
        device, dtype: to which the learner is moved; None to leave it where it is.

    Raises:
        ValueError: numbers out of range, unknown groups, options without effect.

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
    ) -> None:
        if not isinstance(task, Problem) and (device is not None or dtype is not None):
            task.to(device, dtype)
        self.learner: Any = ProblemTask(task, device, dtype) if isinstance(task, Problem) else task
        refuse_settings(self.learner, tasks_per_step, chunk, clip, warm_start, inner_every)
        self.tasks_per_step, self.chunk, self.clip, self.inner_every = (
            tasks_per_step,
            chunk,
            clip,
            inner_every,
        )
        self.schedule, self.warm_start, self.show = schedule, warm_start, progress
        self.lr, self.options, self._make = lr, dict(options or {}), optimizer
        self._start(0)
        refuse_optimizer(self.optimizer)

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
        }

    @staticmethod
    def has_run(run_dir: str | Path) -> bool:
        """Whether a folder holds a run that can be resumed."""
        return (Path(run_dir) / "config.json").exists()

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
            stop_at: stop before this step although the schedule is for `steps`; `resume` goes on.
            tensorboard: also write the metrics as event files into the run folder.

        Returns: the log, one dict a logged step.

        Raises:
            RunError: a folder that holds another run or cannot be written.
            NumericalError: a non-finite gradient; the message names the episodes, the last checkpoint stays.
            KeyboardInterrupt: after Ctrl-C, when the step that was running is finished and kept.
        """
        plan = Plan(steps, validate_every, validation_episodes, checkpoint_every, log_every)
        plan.check(self, episodes, validation, run_dir, tensorboard)
        self._start(steps)
        if run_dir is None:
            return self._loop(episodes, validation, None, plan, [], stop_at)
        with Run.create(run_dir, plan.config(self, episodes, validation)) as run:
            self._save(run)
            return self._loop(episodes, validation, run, plan, [], stop_at, tensorboard)

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
        with Run.open(run_dir) as run:
            plan, episodes, validation = Plan.restored(self, run.config, episodes, validation)
            self._start(plan.steps)
            if run.checkpoint("latest").exists():
                self._restore(run.load("latest")[0])
            else:  # killed before the first one
                plan.check_start(self, run.config)
                self._save(run)
            run.truncate(self.step)
            return self._loop(episodes, validation, run, plan, list(run.metrics()), stop_at, tensorboard)

    # --- one run -------------------------------------------------------------------------------------------

    def _start(self, steps: int) -> None:
        self.optimizer = self._make(parameter_groups(self.learner.trained, self.lr), **self.options)
        self.steps, self.step = steps, 0
        self.best: float | None = None
        self._inner: Mapping[str, Tensor] | None = None
        self._sums: dict[str, float] = {}
        self._scheduler = resolve_schedule(self.schedule, self.optimizer, steps)

    def _loop(
        self,
        episodes: Any,
        validation: Any,
        run: Run | None,
        plan: Plan,
        log: list[dict[str, Any]],
        stop_at: int | None,
        tensorboard: bool = False,
    ) -> list[dict[str, Any]]:
        end = self.steps if stop_at is None else min(stop_at, self.steps)
        best = None if run is None or self.best is None else run.load("best")[0]
        bar = Progress(self.show, self.steps, self.step, self.tasks_per_step)
        board = Board(run.folder if run is not None and tensorboard else None, self.step)
        with ThreadPoolExecutor(1) as pool, bar, board, Interruption() as interruption:
            upcoming = self._fetch(pool, episodes, self.step) if self.step < end else None
            while upcoming is not None:
                batch = upcoming.result()
                upcoming = self._fetch(pool, episodes, self.step + 1) if self.step + 1 < end else None
                self._outer_step(batch)
                last = self.step == self.steps
                row = self._flush() if last or self.step % plan.log_every == 0 else {}
                if validation is not None and (last or self.step % plan.validate_every == 0):
                    score, found = self._validate(validation, plan.validation_episodes)
                    row.update(found)
                    if self.best is None or score > self.best:
                        self.best, best = score, self.learner.state()
                        if run is not None:
                            run.save("best", best, {"step": self.step})
                if row:
                    log.append({"step": self.step, **row})
                    board.add(self.step, row)
                    if run is not None:
                        run.log(self.step, **row)
                stopped = interruption.asked and not last
                if run is not None and (
                    stopped or upcoming is None or self.step % plan.checkpoint_every == 0
                ):
                    self._save(run)
                bar.advance(row)
                if stopped:
                    raise KeyboardInterrupt(plan.farewell(self.step, run))
        if best is not None and self.step == self.steps:
            self.learner.load_state(best)
        return log

    def _fetch(self, pool: ThreadPoolExecutor, episodes: Any, step: int) -> Future[Any]:
        """Draw the next batch while the current one is worked on."""
        if episodes is None:
            return pool.submit(lambda: None)
        return pool.submit(episodes.batch, step * self.tasks_per_step, self.tasks_per_step)

    def _outer_step(self, batch: Any) -> None:
        task = self.learner if self.step % self.inner_every == 0 else self.learner.held()
        try:
            found = accumulated(task, batch, self.chunk, self._inner)
        except NumericalError as error:
            first = self.step * self.tasks_per_step
            where = f"outer step {self.step + 1}, episodes {first} to {first + self.tasks_per_step - 1}"
            raise NumericalError(f"{where}: {error}. The last checkpoint is kept.") from error
        self._inner = found.w if self.warm_start else None
        trained: dict[str, Tensor] = self.learner.trained
        for name, value in trained.items():
            value.grad = found.grads[name]
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(trained.values()), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if found.statistics:
            move_buffers(self.learner.model.module, found.statistics)
        if self._scheduler is not None:
            self._scheduler.step()
        self.step += 1
        numbers = {name: float(value) for name, value in found.values.items()}
        for name, number in {**numbers, "count": 1.0}.items():
            self._sums[name] = self._sums.get(name, 0.0) + number

    def _flush(self) -> dict[str, Any]:
        """Means since the last row."""
        count = self._sums.pop("count", math.nan)
        row = {name: total / count for name, total in self._sums.items()}
        self._sums = {}
        return row

    def _validate(self, validation: Any, episodes: int) -> tuple[float, dict[str, Any]]:
        """The score (accuracy, or minus the loss) and the numbers for the log."""
        try:
            result = evaluate(self.learner, validation, episodes)
        except NumericalError as error:
            raise NumericalError(f"validation after outer step {self.step}: {error}") from error
        if not result.has_accuracy:
            return -result.loss, {"validation_loss": result.loss}
        return result.accuracy, {"validation_accuracy": result.accuracy, "validation_loss": result.loss}

    def _save(self, run: Run) -> None:
        tree = {
            "step": self.step,
            "best": self.best,
            "sums": self._sums,
            "learner": self.learner.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "inner": self._inner,
        }
        run.save("latest", tree, {"step": self.step})

    def _restore(self, tree: dict[str, Any]) -> None:
        self.step, self.best, self._sums = tree["step"], tree["best"], tree["sums"]
        device, inner = next(iter(self.learner.trained.values())).device, tree["inner"]
        self._inner = None if inner is None else {name: value.to(device) for name, value in inner.items()}
        self.learner.load_state(tree["learner"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(tree["scheduler"])

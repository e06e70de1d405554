"""The outer loop: gradients of batches of tasks, an optimiser, validation, a run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metapeft.buffers import move_buffers, task_mean
from metapeft.errors import NumericalError
from metapeft.evaluation import evaluate
from metapeft.hypergradients.problem import Problem, Result, resolve
from metapeft.progress import Progress
from metapeft.runs import Run
from metapeft.schedules import resolve_schedule


class ProblemTask:
    """A bilevel problem as something that can be trained: its outer variables are copied."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.trained = {name: value.detach().clone() for name, value in problem.u.items()}
        self._engine = resolve(problem.method)

    def hypergradient(self, batch: Any, w0: Mapping[str, Tensor] | None = None) -> Result:
        """The gradient at the current outer variables; `batch` is the problem's data, None to keep its own."""
        own = self.problem
        data = own.data if batch is None else batch
        start = own.w0 if w0 is None else w0
        return self._engine(
            Problem(own.outer, own.inner, self.trained, start, own.solver, own.method, data, own.task_axis, own.has_aux)
        )

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.trained.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.trained.items():
            value.copy_(state[name])

    def settings(self) -> dict[str, Any]:
        """What identifies this task in a run folder."""
        return {"method": "problem", "shapes": {name: list(value.shape) for name, value in self.trained.items()}}


class BilevelTrainer:
    """Trains the outer variables of a learner, or of a bilevel problem, by their hypergradients.

    Args:
        task: a `Learner`, an `mp.Problem`, or anything with `.trained .hypergradient .state .load_state .settings`.
        optimizer: a class of `torch.optim`, called as `optimizer(groups, lr=lr, **options)`.
        lr: of all outer variables, or `{group: lr}` by the first part of their names; `"default"` for the rest.
        tasks_per_step: episodes an outer step.
        chunk: how many of them go through one forward; None for all. Gradients are accumulated.
        clip: largest norm of the whole outer gradient; None for no clipping.
        schedule: None, `"cosine"` (to 0 over the run), or a function `(optimizer, steps) -> torch scheduler`.
        warm_start: keep the inner variables from one outer step to the next (they are part of the checkpoint).
        options: of the optimiser, such as `{"betas": (0.5, 0.999)}`.
        progress: show a bar with loss, accuracy, tasks a second and the time left.

    Raises:
        ValueError: numbers out of range, unknown groups.
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
        options: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        if tasks_per_step < 1 or (chunk is not None and chunk < 1):
            raise ValueError(f"tasks_per_step={tasks_per_step}, chunk={chunk}: both are at least 1")
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"clip={clip!r}: allowed is a number above 0, or None")
        if warm_start and chunk is not None:
            raise ValueError("warm_start=True keeps the inner variables of all tasks: chunk has to be None")
        self.learner = ProblemTask(task) if isinstance(task, Problem) else task
        if not self.learner.trained:
            raise ValueError("the learner trains nothing (outer=()): there is nothing to fit")
        self.tasks_per_step, self.chunk, self.clip = tasks_per_step, chunk, clip
        self.schedule, self.warm_start, self.show = schedule, warm_start, progress
        self.lr, self.options = lr, dict(options or {})
        self.optimizer = optimizer(self._groups(lr), **self.options)
        self.step, self.steps = 0, 0
        self.best: float | None = None
        self._scheduler: Any = None
        self._inner: dict[str, Tensor] | None = None
        self._sums: dict[str, float] = {}

    def _groups(self, lr: float | Mapping[str, float]) -> list[dict[str, Any]]:
        """One parameter group a rate, in the order of the outer variables."""
        names = list(self.learner.trained)
        rates = {"default": lr} if not isinstance(lr, Mapping) else dict(lr)
        known = {name.partition(".")[0] for name in names}
        for group in rates:
            if group != "default" and group not in known:
                raise ValueError(f"lr names the group {group!r}, which is not trained: trained are {sorted(known)}")
        groups: dict[str, list[Tensor]] = {}
        for name in names:
            group = name.partition(".")[0]
            key = group if group in rates else "default"
            if key not in rates:
                raise ValueError(f"lr has no rate for {name!r}: add {group!r} or \"default\"")
            groups.setdefault(key, []).append(self.learner.trained[name])
        return [{"params": values, "lr": rates[key]} for key, values in groups.items()]

    def settings(self) -> dict[str, Any]:
        """Everything that the outcome depends on, as JSON can say it."""
        return {
            "optimizer": type(self.optimizer).__name__,
            "options": {name: list(v) if isinstance(v, tuple) else v for name, v in self.options.items()},
            "lr": dict(self.lr) if isinstance(self.lr, Mapping) else self.lr,
            "tasks_per_step": self.tasks_per_step,
            "chunk": self.chunk,
            "clip": self.clip,
            "schedule": self.schedule if self.schedule is None or isinstance(self.schedule, str) else "custom",
            "warm_start": self.warm_start,
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
    ) -> list[dict[str, Any]]:
        """Train for `steps` outer steps.

        Args:
            episodes: anything with `.batch(start, count)`, such as an `EpisodeSampler`; step k takes episodes
                `k * tasks_per_step ..`. None for a problem without data.
            validation: a sampler on validation classes; at the end the learner has the best state found there.
            run_dir: a new folder for config, metrics and checkpoints; None to keep nothing.
            validate_every, checkpoint_every, log_every: in outer steps. validation_episodes: how many.
            stop_at: stop before this step although the schedule is for `steps`; `resume` goes on.

        Returns: the log, one dict a logged step.

        Raises:
            RunError: a folder that holds another run or cannot be written.
            NumericalError: a non-finite gradient; the message names the episodes, the last checkpoint stays.
        """
        plan = {
            "steps": steps, "validate_every": validate_every, "validation_episodes": validation_episodes,
            "checkpoint_every": checkpoint_every, "log_every": log_every,
        }  # fmt: skip
        for name, value in plan.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: allowed is a whole number of at least 1")
        self._start(steps)
        if run_dir is None:
            return self._loop(episodes, validation, None, plan, [], stop_at)
        config = {"trainer": self.settings(), "fit": plan, "learner": self.learner.settings()}
        config["episodes"] = described(episodes)
        config["validation"] = described(validation)
        with Run.create(run_dir, config) as run:
            self._save(run)
            return self._loop(episodes, validation, run, plan, [], stop_at)

    def resume(
        self, run_dir: str | Path, episodes: Any, validation: Any = None, stop_at: int | None = None
    ) -> list[dict[str, Any]]:
        """Go on with a run from its last checkpoint, to the same end, bit for bit, as if it had never stopped.

        Args:
            run_dir: what `fit` was given. episodes, validation: the same as there.

        Raises:
            RunError: no such run, or one in use.
            ValueError: a trainer, learner or episodes other than the run was started with.
        """
        with Run.open(run_dir) as run:
            config = run.config
            own = {"trainer": self.settings(), "learner": self.learner.settings(), "episodes": described(episodes), "validation": described(validation)}
            for part, value in own.items():
                refuse_difference(part, config.get(part), plain(value))
            plan = config["fit"]
            self._start(plan["steps"])
            tree, _ = run.load("latest")
            self._restore(tree)
            run.truncate(self.step)
            return self._loop(episodes, validation, run, plan, list(run.metrics()), stop_at)

    # --- one run -------------------------------------------------------------------------------------------

    def _start(self, steps: int) -> None:
        self.steps, self.step, self.best = steps, 0, None
        self._inner, self._sums = None, {}
        self._scheduler = resolve_schedule(self.schedule, self.optimizer, steps)

    def _loop(
        self, episodes: Any, validation: Any, run: Run | None, plan: dict[str, int], log: list[dict[str, Any]], stop_at: int | None
    ) -> list[dict[str, Any]]:
        end = self.steps if stop_at is None else min(stop_at, self.steps)
        best_state: dict[str, Tensor] | None = None
        if run is not None and self.best is not None:
            best_state = run.load("best")[0]
        with ThreadPoolExecutor(1) as pool, Progress(self.show, self.steps, self.step, self.tasks_per_step) as bar:
            upcoming = self._fetch(pool, episodes, self.step) if self.step < end else None
            while self.step < end and upcoming is not None:
                batch = upcoming.result()
                upcoming = self._fetch(pool, episodes, self.step + 1) if self.step + 1 < end else None
                self._outer_step(batch)
                row: dict[str, Any] = {}
                if self.step % plan["log_every"] == 0 or self.step == self.steps:
                    row = self._flush()
                if validation is not None and (self.step % plan["validate_every"] == 0 or self.step == self.steps):
                    score, found = self._validate(validation, plan["validation_episodes"])
                    row.update(found)
                    if self.best is None or score > self.best:
                        self.best, best_state = score, self.learner.state()
                        if run is not None:
                            run.save("best", best_state, {"step": self.step})
                if row:
                    log.append({"step": self.step, **row})
                    if run is not None:
                        run.log(self.step, **row)
                if run is not None and (self.step % plan["checkpoint_every"] == 0 or self.step == end):
                    self._save(run)
                bar.advance(row)
        if best_state is not None and self.step == self.steps:
            self.learner.load_state(best_state)
        return log

    def _fetch(self, pool: ThreadPoolExecutor, episodes: Any, step: int) -> Future[Any]:
        """Draw the next batch while the current one is worked on."""
        if episodes is None:
            return pool.submit(lambda: None)
        return pool.submit(episodes.batch, step * self.tasks_per_step, self.tasks_per_step)

    def _outer_step(self, batch: Any) -> None:
        first = self.step * self.tasks_per_step
        try:
            grads, values = self._gradient(batch)
        except NumericalError as error:
            raise NumericalError(
                f"outer step {self.step + 1}, episodes {first} to {first + self.tasks_per_step - 1}: {error} "
                "The last checkpoint is kept."
            ) from error
        for name, value in self.learner.trained.items():
            value.grad = grads[name]
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.learner.trained.values()), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._scheduler is not None:
            self._scheduler.step()
        self.step += 1
        for name, number in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + number
        self._sums["count"] = self._sums.get("count", 0.0) + 1

    def _gradient(self, batch: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Mean gradient over the tasks of a batch, chunk by chunk; moves the buffers."""
        if isinstance(self.learner, ProblemTask):
            parts, weights = [self.learner.hypergradient(batch, self._inner)], [1.0]
        else:
            size = self.tasks_per_step if self.chunk is None else self.chunk
            pieces = [batch.tasks(slice(i, i + size)) for i in range(0, len(batch), size)]
            weights = [len(piece) / len(batch) for piece in pieces]
            parts = [self.learner.hypergradient(piece, self._inner) for piece in pieces]
        if self.warm_start:
            self._inner = parts[0].w
        grads = parts[0].grads if len(parts) == 1 else {
            name: torch.stack([part.grads[name] * weight for part, weight in zip(parts, weights)]).sum(0)
            for name in parts[0].grads
        }  # fmt: skip
        statistics = [task_mean(part.log["statistics"]) for part in parts if part.log.get("statistics")]
        if statistics:
            means = {
                name: tuple(sum(w * found[name][i] for found, w in zip(statistics, weights)) for i in range(2))
                for name in statistics[0]
            }
            move_buffers(self.learner.model.module, means)  # type: ignore[arg-type]
        values = {"loss": sum(w * float(part.value) for part, w in zip(parts, weights))}
        if "accuracy" in parts[0].log:
            values["accuracy"] = sum(w * float(part.log["accuracy"].mean()) for part, w in zip(parts, weights))
        return grads, values

    def _flush(self) -> dict[str, Any]:
        count = self._sums.pop("count", 0.0)
        row = {name: total / count for name, total in self._sums.items()} if count else {}
        self._sums = {}
        return row

    def _validate(self, validation: Any, episodes: int) -> tuple[float, dict[str, Any]]:
        result = evaluate(self.learner, validation, episodes)
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
        self.step, self.best, self._sums, self._inner = tree["step"], tree["best"], tree["sums"], tree["inner"]
        self.learner.load_state(tree["learner"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(tree["scheduler"])


def described(episodes: Any) -> Any:
    """What identifies the episodes of a run: their sampler's settings, or its type."""
    if episodes is None:
        return None
    settings = getattr(episodes, "settings", None)
    return plain(settings()) if callable(settings) else type(episodes).__name__


def plain(value: Any) -> Any:
    """The value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def refuse_difference(part: str, stored: Any, given: Any) -> None:
    """Raise ValueError where a setting differs from that of the stored run, naming it."""
    if stored == given:
        return
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in {**stored, **given}:
            refuse_difference(f"{part}.{key}", stored.get(key), given.get(key))
        return
    raise ValueError(f"{part} is {given!r} here, but the run was started with {stored!r}: resume it with the same")



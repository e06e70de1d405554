"""What one training run is: its plan, its config in the run folder, and what is refused before it starts."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from metapeft import specs
from metapeft.arguments import flag, number, whole
from metapeft.compiled.switch import in_use
from metapeft.distributed import Processes
from metapeft.episode_specs import built_episodes, of_episodes
from metapeft.hypergradients.problem import Problem
from metapeft.learner_checks import adapts_start
from metapeft.problem_task import ProblemTask
from metapeft.runs import Run

if TYPE_CHECKING:
    from metapeft.trainer import BilevelTrainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How long a run is and how often it validates, keeps a checkpoint and logs, in outer steps.

    Example:
        >>> Plan(steps=0)
        Traceback (most recent call last):
        ValueError: steps=0: allowed is a whole number of at least 1
    """

    steps: int
    validate_every: int = 200
    validation_episodes: int = 200
    checkpoint_every: int = 100
    log_every: int = 10
    validate_start: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "validate_start":
                flag(validate_start=value)
            else:
                whole(**{field.name: value})

    def check(
        self, trainer: BilevelTrainer, episodes: Any, validation: Any, run_dir: Any, tensorboard: bool = False
    ) -> None:
        """Raise ValueError for episodes that do not suffice, and for what would have no effect."""
        if episodes is None and not isinstance(trainer.learner, ProblemTask):
            raise ValueError("episodes=None: a learner trains on episodes, such as an mp.EpisodeSampler")
        for name, given in (("episodes", episodes), ("validation", validation)):
            if given is not None and not hasattr(given, "batch"):
                raise ValueError(
                    f"{name} is a {type(given).__name__} without .batch(start, count): wrap a data set in "
                    "mp.EpisodeSampler"
                )
        _check_count("episodes", episodes, self.steps * trainer.tasks_per_step)
        _check_count("validation", validation, self.validation_episodes)
        if validation is None and self.validate_start:
            raise ValueError("validate_start=True has no effect without validation=")
        if validation is not None and not hasattr(trainer.learner, "objectives"):
            raise ValueError("validation= is for learners: what is trained here adapts to no episodes")
        if tensorboard and run_dir is None:
            raise ValueError("tensorboard=True writes into the run folder: give run_dir= too")

    def config(self, trainer: BilevelTrainer, episodes: Any, validation: Any) -> dict[str, Any]:
        """What the run folder says about the run; `start` is what it began from."""
        return {
            "trainer": trainer.settings(),
            "fit": asdict(self),
            "learner": trainer.learner.settings(),
            "episodes": of_episodes(episodes),
            "validation": of_episodes(validation),
            "start": specs.digest(trainer.learner.state()),
        }

    @classmethod
    def restored(
        cls, trainer: BilevelTrainer, config: Mapping[str, Any], episodes: Any, validation: Any
    ) -> tuple[Self, Any, Any]:
        """The plan and the episodes of a stored run; raises ValueError for what differs from it."""
        for part, given in (("trainer", trainer.settings()), ("learner", trainer.learner.settings())):
            specs.refuse_difference(part, config.get(part), specs.as_json(given))
        found = []
        for part, given in (("episodes", episodes), ("validation", validation)):
            if given is None:
                given = built_episodes(config.get(part), part)
            else:
                specs.refuse_difference(part, config.get(part), of_episodes(given))
            found.append(given)
        return cls(**config["fit"]), *found

    def check_start(self, trainer: BilevelTrainer, config: Mapping[str, Any]) -> None:
        """Raise ValueError unless the learner is what the run, which has no checkpoint yet, began with."""
        specs.refuse_difference("start", config.get("start"), specs.digest(trainer.learner.state()))

    def farewell(self, step: int, run: Run | None) -> str:
        """What to say after Ctrl-C."""
        if run is None:
            return f"stopped after outer step {step} of {self.steps}; nothing was kept (no run_dir=)"
        again = f"trainer.resume({str(run.folder)!r}, ...)"
        return f"stopped after outer step {step} of {self.steps}; {again} goes on"


def refuse_task(task: object, optimizer: object) -> None:
    """Raise ValueError for what a trainer cannot train, and for an optimiser that is not called.

    Example:
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


def parameter_groups(trained: Mapping[str, Tensor], lr: float | Mapping[str, float]) -> list[dict[str, Any]]:
    """One parameter group a rate, in the order of the outer variables.

    Args:
        lr: of all, or `{group: rate}` by the first part of the variables' names; `"default"` for the rest.

    Raises:
        ValueError: a rate that is no number of at least 0, a group that is not trained, a variable without a rate.

    Example:
        >>> trained = {"weights.w": torch.zeros(1), "rates.r": torch.ones(1)}
        >>> parameter_groups(trained, {"rates": 0.1, "default": 1.0})
        [{'params': [tensor([0.])], 'lr': 1.0}, {'params': [tensor([1.])], 'lr': 0.1}]
    """
    rates = dict(lr) if isinstance(lr, Mapping) else {"default": lr}
    known = {name.partition(".")[0] for name in trained}
    for group, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise ValueError(f"lr={rate!r}: an outer rate is a finite number of at least 0")
        if group != "default" and group not in known:
            raise ValueError(
                f"lr names the group {group!r}, which is not trained: trained are {sorted(known)}"
            )
    groups: dict[str, list[Tensor]] = {}
    for name, value in trained.items():
        group = name.partition(".")[0]
        key = group if group in rates else "default"
        if key not in rates:
            raise ValueError(f'lr has no rate for {name!r}: add {group!r} or "default"')
        groups.setdefault(key, []).append(value)
    return [{"params": values, "lr": rates[key]} for key, values in groups.items()]


def made_optimizer(
    optimizer: Callable[..., Any], trained: Mapping[str, Tensor], lr: Any, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The optimiser of the outer variables.

    Raises:
        ValueError: what `parameter_groups` refuses, options that it does not take, what is no optimiser, and one that
            wants to evaluate the objective itself.
    """
    groups = parameter_groups(trained, lr)
    try:
        made = optimizer(groups, **options)
    except TypeError as error:
        raise ValueError(f"options={dict(options)!r}: {error}") from error
    _refuse_optimizer(made)
    found: torch.optim.Optimizer = made
    return found


def _refuse_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer makes a {type(optimizer).__name__}: a class of torch.optim is needed")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"optimizer={type(optimizer).__name__} evaluates its objective several times a step: take one "
            "that steps once a gradient, such as torch.optim.Adam"
        )


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


def note_other_processes(before: int, processes: Processes) -> None:
    """Say that a run goes on with another number of processes than its checkpoint was written by."""
    if processes.main and before != processes.count:
        _log.warning(
            "%d processes go on where %d stopped: the same means up to rounding, not the same bits",
            processes.count,
            before,
        )


def as_begun(compiled: bool, processes: Processes) -> bool:
    """Whether a run goes on with compiled kernels: as it was begun, for its bits; where that differs, it is said."""
    if processes.main and compiled != in_use():
        _log.warning(
            "this run was begun %s compiled kernels, and goes on so", "with" if compiled else "without"
        )
    return compiled


def _check_warm(learner: Any) -> None:
    """Starts that the kept inner variables replace get no gradient from the second step on."""
    if isinstance(learner, ProblemTask) or not hasattr(learner, "objectives"):
        return
    if learner.inner is None:
        raise ValueError("warm_start=True has no effect: this learner has no inner solver")
    for group in ("factors", "generator"):
        if group in learner.outer and adapts_start(learner, group):
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

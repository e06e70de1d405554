"""What one training run is: its plan, its config in the run folder, and what is refused before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from metapeft.base.arguments import flag, whole
from metapeft.base.state import digest
from metapeft.base.stored_settings import as_json, refuse_difference
from metapeft.episodes.settings import built_episodes, of_episodes
from metapeft.training.runs.run import Run
from metapeft.training.task import Task

NO_LEARNER = "validation= is for learners: what is trained here adapts to no episodes"


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
        self,
        task: Task,
        tasks_per_step: int,
        episodes: Any,
        validation: Any,
        run_dir: Any,
        tensorboard: bool = False,
    ) -> None:
        """Raise ValueError for episodes that do not suffice, and for what would have no effect."""
        if episodes is None and task.needs_episodes:
            raise ValueError("episodes=None: a learner trains on episodes, such as an mp.EpisodeSampler")
        wanted = {"episodes": self.steps * tasks_per_step, "validation": self.validation_episodes}
        for name, given in (("episodes", episodes), ("validation", validation)):
            if given is not None and not hasattr(given, "batch"):
                raise ValueError(
                    f"{name} is a {type(given).__name__} without .batch(start, count): wrap a data set in "
                    "mp.EpisodeSampler"
                )
            count = getattr(given, "episodes", None)
            if isinstance(count, int) and count < wanted[name]:
                raise ValueError(
                    f"{name} has {count} episodes, the run takes {wanted[name]}: a larger episodes= in its sampler"
                )
        if validation is None and self.validate_start:
            raise ValueError("validate_start=True has no effect without validation=")
        if validation is not None and task.learner is None:
            raise ValueError(NO_LEARNER)
        if tensorboard and run_dir is None:
            raise ValueError("tensorboard=True writes into the run folder: give run_dir= too")

    def config(
        self, task: Task, settings: Mapping[str, Any], episodes: Any, validation: Any
    ) -> dict[str, Any]:
        """What the run folder says about the run: `settings` of the trainer; `start` is what it began from."""
        return {
            "trainer": dict(settings),
            "fit": asdict(self),
            "learner": task.settings(),
            "episodes": of_episodes(episodes),
            "validation": of_episodes(validation),
            "start": digest(task.state()),
        }

    @classmethod
    def restored(
        cls,
        task: Task,
        settings: Mapping[str, Any],
        config: Mapping[str, Any],
        episodes: Any,
        validation: Any,
    ) -> tuple[Self, Any, Any]:
        """The plan and the episodes of a stored run; raises ValueError for what differs from it."""
        for part, given in (("trainer", settings), ("learner", task.settings())):
            refuse_difference(part, config.get(part), as_json(given))
        found = []
        for part, given in (("episodes", episodes), ("validation", validation)):
            if given is None:
                given = built_episodes(config.get(part), part)
            else:
                refuse_difference(part, config.get(part), of_episodes(given))
            found.append(given)
        return cls(**config["fit"]), *found

    def check_start(self, task: Task, config: Mapping[str, Any]) -> None:
        """Raise ValueError unless the task is what the run, which has no checkpoint yet, began with."""
        refuse_difference("start", config.get("start"), digest(task.state()))

    def farewell(self, step: int, run: Run | None) -> str:
        """What to say after Ctrl-C or SIGTERM."""
        if run is None:
            return f"stopped after outer step {step} of {self.steps}; nothing was kept (no run_dir=)"
        again = f"trainer.resume({str(run.folder)!r}, ...)"
        return f"stopped after outer step {step} of {self.steps}; {again} goes on"

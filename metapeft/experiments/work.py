"""The parts of a main job and about how much each of them is, so that the time left can be told. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metapeft.experiments.config import TrainConfig

GRADIENT = 3.0  # a forward with its gradient, in forwards
STEP = (
    0.35  # images that a step takes beside those of its forwards, in hundreds: small networks wait for Python
)
ENOUGH = 0.1  # of a part, before its own pace says something


@dataclass(frozen=True)
class Part:
    """A stage or method doing one kind of thing.

    Attributes:
        stage: "sr", or a method's name. kind: "retraining", "choosing", "training", "evaluating" or "functions".
        size: forwards of a hundred images.
    """

    stage: str
    kind: str
    size: float


def parts(config: TrainConfig, methods: Mapping[str, Any], columns: list[int | None]) -> list[Part]:
    """What a job will do, in its order.

    Args:
        methods: name -> row of the method table, in the order in which they are done.
        columns: the inner steps of each column of the table; None where they are chosen.

    Example:
        >>> from metapeft.experiments.compared_methods import METHODS
        >>> few = TrainConfig(methods=("sr+lora",))
        >>> [(part.stage, part.kind) for part in parts(few, {"sr+lora": METHODS["sr+lora"]}, [None])][:3]
        [('sr', 'retraining'), ('sr-continued', 'retraining'), ('sr+lora', 'choosing')]
    """
    support, query = config.ways * config.shots / 100, config.ways * config.queries / 100
    episode = support + query

    def adapting(steps: int) -> float:
        """An episode."""
        return episode + steps * (GRADIENT * support + STEP / 8)

    trained = min(config.inner_steps, key=lambda count: (abs(count - 5), count))
    found = [Part("sr", "retraining", config.pretrain_steps * (GRADIENT * 1.28 + STEP))]
    continued = False
    for name, method in methods.items():
        if method.control_of is None:
            if not method.trains and not continued:
                images = config.tasks_per_step * episode
                found.append(Part("sr-continued", "retraining", config.steps * (GRADIENT * images + STEP)))
                continued = True
            inner = trained if method.adapts else 0
            if method.adapts:
                size = len(config.inner_lrs) * config.validation_episodes * adapting(inner)
                found.append(Part(name, "choosing", size))
            if method.trains:
                looped = (1 - config.direct) if inner else 0.0
                tasks = config.tasks_per_step * (GRADIENT * episode + looped * 2 * GRADIENT * inner * support)
                found.append(Part(name, "training", config.steps * (tasks + STEP * (1 + looped * inner))))
        chosen = sum(map(adapting, config.inner_steps)) * config.validation_episodes
        size = 0.0
        for steps in columns:
            if method.adapts or not steps:
                choices = chosen if steps is None and method.adapts and method.control_of is None else 0.0
                size += choices + config.episodes * adapting((steps or 0) if method.adapts else 0)
        found.append(Part(name, "evaluating", size))
    if config.function_steps:
        found.append(Part("functions", "functions", 4 * (config.function_steps * 2 * STEP + 40)))
    return found


class Clock:
    """How long the rest will take, from how long what is done took; work of a kind is held against that kind first.

    Args:
        planned: the parts to come, in their order.

    Example:
        >>> clock = Clock([Part("sr", "retraining", 2.0), Part("maml", "training", 4.0)])
        >>> clock.begin("sr", "retraining", now=0.0)
        >>> clock.left(now=1.0) is None
        True
        >>> clock.at(0.5)
        >>> clock.left(now=2.0), round(clock.share(), 3)
        (10.0, 0.167)
    """

    def __init__(self, planned: list[Part]) -> None:
        self.planned = list(planned)
        self.total = sum(part.size for part in planned)
        self.measured: dict[str, tuple[float, float]] = {}  # kind -> work, seconds
        self.costs: dict[str, dict[str, tuple[float, int | None]]] = {}  # stage -> kind -> seconds, bytes
        self.part: Part | None = None
        self.since, self.first, self.done = 0.0, 0.0, 0.0

    def begin(self, stage: str, kind: str, now: float, highest: int | None = None) -> None:
        """The next part, of which nothing is done; what is planned before it counts as done before.

        `highest`: bytes that were held at most in the part before.
        """
        self.end(now, highest)
        names = [(part.stage, part.kind) for part in self.planned]
        if (stage, kind) in names:
            place = names.index((stage, kind))
            self.part = self.planned[place]
            self.planned = self.planned[place + 1 :]
        self.since, self.first, self.done = now, 0.0, 0.0

    def at(self, share: float, fresh: bool = False) -> None:
        """How much of the part is done; `fresh` where that was done by an earlier call."""
        self.done = share
        if fresh:
            self.first = share

    def end(self, now: float, highest: int | None = None) -> None:
        """The part is done."""
        if self.part is not None:
            work, seconds = self.measured.get(self.part.kind, (0.0, 0.0))
            made = self.part.size * (1 - self.first)
            if made > 0:
                self.measured[self.part.kind] = (work + made, seconds + now - self.since)
            if self.first == 0:  # what an earlier call began would be told too short
                self.costs.setdefault(self.part.stage, {})[self.part.kind] = (now - self.since, highest)
            self.part = None

    def share(self) -> float:
        """What is done of all, in [0, 1]."""
        left = sum(part.size for part in self.planned)
        if self.part is not None:
            left += self.part.size * (1 - self.done)
        return 1 - left / self.total if self.total else 0.0

    def left(self, now: float) -> float | None:
        """Seconds; None before anything can be said."""
        known = dict(self.measured)
        if self.part is not None and self.done - self.first >= ENOUGH:
            work, seconds = known.get(self.part.kind, (0.0, 0.0))
            made = self.part.size * (self.done - self.first)
            known[self.part.kind] = (work + made, seconds + now - self.since)
        work, seconds = (sum(values) for values in zip(*known.values())) if known else (0.0, 0.0)
        if not work:
            return None
        usual = seconds / work

        def rate(kind: str) -> float:
            work, seconds = known.get(kind, (0.0, 0.0))
            return seconds / work if work else usual

        rest = sum(part.size * rate(part.kind) for part in self.planned)
        if self.part is not None:
            rest += self.part.size * (1 - self.done) * rate(self.part.kind)
        return rest

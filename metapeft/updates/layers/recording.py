"""What a forward computes before the first layer whose update moves: recorded once, handed back in later forwards.

The modules of a backbone run one after the other, so what has ended before that layer begins cannot depend on its
update. The outermost of those modules that give one tensor of floats are recorded: on the way back they give it again
and do not run; what stands between them does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from metapeft.updates.layers.per_task import PerTask, Tracing

Visits = Counter[str]
Work = Callable[[], Any]


class MovingLayerReached(BaseException):
    """What ends a forward that only records; no module's own `except Exception` may take it."""


class Counting(Protocol):
    """What a run counts: how often each leaf module ran, dropout, and steps on values that each task has its own of."""

    visits: Visits
    dropouts: int
    tracing: Tracing | None


@dataclass(frozen=True)
class Place:
    """One run of a module in a forward: its name, the runs of it before, and what is counted when it has ended."""

    name: str
    before: int
    modules: Visits
    leaf_modules: Visits
    dropouts: int
    steps: int


class Recording:
    """A forward that takes down what modules give, until one begins that has an update among `moving`."""

    def __init__(self, moving: Collection[str]) -> None:
        self.moving = frozenset(moving)
        self.places: list[Place] = []
        self.outputs: list[Tensor] = []
        self.modules: Visits = Counter()

    def begins(self, parameters: Collection[str]) -> None:
        """A layer with updates on these parameters begins."""
        if not self.moving.isdisjoint(parameters):
            raise MovingLayerReached

    def run(self, name: str, call: Counting, work: Work) -> Any:
        """`work()`, the forward of a module."""
        before, inside = self.modules[name], len(self.places)
        self.modules[name] += 1
        output = work()
        if isinstance(output, Tensor) and output.is_floating_point() and not isinstance(output, PerTask):
            del self.places[inside:], self.outputs[inside:]
            steps = 0 if call.tracing is None else call.tracing.done
            self.places.append(
                Place(name, before, self.modules.copy(), call.visits.copy(), call.dropouts, steps)
            )
            self.outputs.append(output)
        return output


class Replay:
    """A forward that hands back outputs of an earlier one on the same inputs."""

    def __init__(self, places: Sequence[Place], outputs: Sequence[Tensor]) -> None:
        self.outputs = {(place.name, place.before): (place, value) for place, value in zip(places, outputs)}
        self.modules: Visits = Counter()

    def begins(self, parameters: Collection[str]) -> None:
        """Nothing ends here."""

    def run(self, name: str, call: Counting, work: Work) -> Any:
        """What was recorded; `work()` where nothing was."""
        found = self.outputs.get((name, self.modules[name]))
        if found is None:
            self.modules[name] += 1
            return work()
        place, output = found
        self.modules, call.visits = place.modules.copy(), place.leaf_modules.copy()
        call.dropouts = place.dropouts
        if call.tracing is not None:
            call.tracing.done = place.steps
        return output

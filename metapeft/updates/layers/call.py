"""What one run of an attached backbone knows: how many tasks, their factors, how to normalise.

The leaf modules of the skeleton read it from a `Holder` while the backbone runs; it lives no longer than that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.updates.formats.format import Factors, Format, Geometry, per_row
from metapeft.updates.formats.modulation import Modulation
from metapeft.updates.layers.kept_state import Kept
from metapeft.updates.layers.layout import Layouts, Shapes
from metapeft.updates.layers.masks import Masks
from metapeft.updates.layers.per_task import Step, Tracing
from metapeft.updates.layers.recording import Recording, Replay

#: batch-norm layer -> mean and biased variance `(T, C)`, and the number of values behind them `(T,)`
Statistics = dict[str, tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Update:
    """One parameter's update in one run: its format, its geometry, its factors `(T or 1, ...)`, its shift and gate.

    `per_input` says whether the seed is.
    """

    format: Format
    geometry: Geometry
    factors: Factors
    tasks: int
    per_input: bool = False
    modulation: Modulation | None = None

    def expand(self, value: Tensor) -> Tensor:
        """Give a tensor `(1 or T, ...)` its full task axis."""
        return value.expand(self.tasks, *value.shape[1:])

    @cached_property
    def down(self) -> Tensor:
        """The map to a few channels, `(T, channels, in, *kernel)`."""
        return self.expand(self.format.down(self.factors))

    @cached_property
    def up(self) -> Tensor:
        """The map back, `(T, out, channels)`, with scale and a task's seed in it."""
        return self.expand(self.format.up(self.factors, mixed=self.per_input))

    def mix(self, hidden: Tensor) -> Tensor:
        """Apply a seed per input to `hidden` `(T, M, channels)`, M positions of B inputs in turn."""
        if not self.per_input or self.format.seed is None:
            return hidden
        items = self.factors[self.format.seed].shape[1]
        return self.format.mix(torch.unflatten(hidden, 1, (items, -1)), self.factors).flatten(1, 2)

    def delta(self, rows: int) -> Tensor:
        """The update as the layer stores it: `(T, *shape)`, or one for each of the `rows` inputs."""
        if self.format.dense:
            return self.expand(self.format.delta(self.factors))
        if self.per_input and self.format.seed is not None:
            factors = per_row(self.factors, rows, self.format.seed)
        else:
            factors = {name: self.expand(value) for name, value in self.factors.items()}
        return self.geometry.stored(self.format.delta(factors))


@dataclass
class Call:
    """One run over `tasks * items` rows.

    `reference` says which items of a task the normalisation statistics are taken from: None means the
    buffers, else the first `reference` items, those that `mask` `(T, reference)` keeps. `statistics` receives
    them. While `shapes` is a dict, the leaf modules note the shapes of what they take and give.
    `masks` are those of dropout, None for none; `dropouts` counts it, and while a leaf module runs under vmap,
    `part` is the number of parts that the rows are cut into, and which of them it is.
    `recording` takes down what modules give, or hands it back. `tracing`: of values that each task has its own of.
    """

    tasks: int
    items: int
    updates: dict[str, Update]
    reference: int | None = None
    mask: Tensor | None = None
    features: bool = False
    statistics: Statistics = field(default_factory=dict)
    shapes: Shapes | None = None
    visits: Counter[str] = field(default_factory=Counter)
    classifier_output: Tensor | None = None
    masks: Masks | None = None
    dropouts: int = 0
    part: tuple[int, Tensor] | None = None
    recording: Recording | Replay | None = None
    tracing: Tracing | None = None

    def run(self, name: str, parameters: Collection[str], work: Callable[[], Any]) -> Any:
        """The forward of a module, of which `parameters` carry updates, recorded or handed back where the run is to."""
        if self.recording is None:
            return work()

        def begun() -> Any:
            if self.recording is not None and parameters:
                self.recording.begins(parameters)
            return work()

        return self.recording.run(name, self, begun)

    @property
    def rows(self) -> int:
        return self.tasks * self.items


class Holder:
    """Where the leaf modules of one attached backbone find the run that is going on, and what was learned of them.

    Args:
        classifier: the leaf module whose input are the features, None where there is none.
    """

    def __init__(self, classifier: str | None) -> None:
        self.call: Call | None = None
        self.classifier = classifier
        self.layouts: Layouts = {}
        self.steps: tuple[Step, ...] | None = (
            None  # where values that each task has its own of are kept as such
        )
        self.once: dict[
            str, nn.Module | None
        ] = {}  # functions that torch differentiates once only, and who calls them
        self.in_turn: set[str] = set()  # leaf modules that run task by task
        self.kept: list[Kept] = []  # tensors that modules keep from one forward to the next
        self.running: list[str] = []  # the modules that run, outermost first, where somebody asks

    def current(self) -> Call:
        if self.call is None:
            raise RuntimeError(
                "an attached backbone runs only through the model that attach() returned "
                "(checkpointing inside its forward runs it again in the backward pass: turn it off)"
            )
        return self.call

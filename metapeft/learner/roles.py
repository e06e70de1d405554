"""Who moves what: the tensors of a learner, each with one role, and the views of its backbone that forwards use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metapeft.base.machine.room import refuse_large
from metapeft.generators.features import embedder, with_own_features
from metapeft.generators.generator import Generator
from metapeft.generators.table import registry as generators
from metapeft.heads.head import HEAD, Head, wide
from metapeft.heads.normalized import CENTER, OnFeatures
from metapeft.inner.solver import Solver
from metapeft.inner.table import registry as solvers
from metapeft.learner.choices import (
    GROUPS,
    adapted_names,
    check_groups,
    classifier_parameters,
    starts_under,
)
from metapeft.learner.items import Items, moved
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import copied, feature_size, viewed
from metapeft.updates.formats.full import Full

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class FixedLayers:
    """What a learner's forwards leave out once it is kept.

    Args:
        modules: their names, and how often each has run before; empty where there is nothing to keep.
        read: whether a gradient goes on to what a module gives; of most it goes to the next of them alone.
        behind: the outer variables, and generated seeds, that act behind them too.
    """

    modules: tuple[tuple[str, int], ...] = ()
    read: tuple[bool, ...] = ()
    behind: frozenset[str] = frozenset()


class Roles:
    """Base of `Learner`: its parts, and every tensor under the name of its group. Objectives read it, nothing else.

    Names of tensors have the group, a word of the library's, before the first dot (`weights.<p>`, `factors.<p>.A`,
    `head.log_scale`), so that no name of a user's module can be taken for another; where the names of factors and the
    head's own tensors stand together, in the inner variables, `is_factor` tells them apart.

    Attributes:
        model: the backbone with its updates, the learner's own copy. source: what that was made of.
        trainable: names of the backbone's parameters that may be trained. dropped: those that another head replaces.
        variables: every tensor of every group, `"<group>.<name>"`; `trained` are those of the outer groups.
        only_derived: outer variables that only what is derived reads.
        factor_names: of all updates. adapted: those that the inner solver moves. selected: layers with a selection.
        seeds: factors that a generator can write (seeds, shifts, gates), with their shapes.
        center: mean feature `(F,)` of the training images under W0, which `mp.fit_center` measures; None before.
        idle: weights that no loss has reached, and of which that was said.
        fixed_layers: with dropout (True) and without, once a batch was seen.
    """

    name: str
    seed: int
    outer: tuple[str, ...]
    inner: Solver | None
    adapt_patterns: str | Sequence[str]
    method: Any
    engine: Callable[..., Any]
    head: Head
    head_name: str
    generator: Generator | None
    selection: Any
    inner_data: str
    loss: Callable[..., Tensor]
    row_loss: Callable[[Tensor, Tensor], Tensor]
    inner_loss: Callable[..., Tensor] | None
    inner_row_loss: Callable[[Tensor, Tensor], Tensor]
    batch_loss: Callable[[Tensor, Tensor | None, Tensor | None], Tensor] | None
    test_steps: int | None
    autocast: torch.dtype | None
    dropout: bool

    def _copy(self, model: AttachedModel, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Take copies of all that may be trained; `source` is what they were made of, and stay comparable to."""
        self.source = model
        self.model, self.trainable = copied(model, self.head_name == "learned", device, dtype)
        self.dropped = [] if self.head_name == "learned" else classifier_parameters(self.model)
        self.generator = with_own_features(self.generator, self.like)
        self.fixed_layers: dict[bool, FixedLayers] = {}
        self.center: Tensor | None = None
        self.idle: set[str] = set()
        self._name_variables()

    def _name_variables(self) -> None:
        """Collect every tensor under its group's name."""
        starts = starts_under(self.selection, self.model)
        self.factor_names = list(starts)
        self.is_factor = frozenset(starts)
        self.seeds = _seeds(self.model, starts)
        self.adapted = [] if self.inner is None else adapted_names(self.adapt_patterns, self.factor_names)
        groups = self._groups(starts)
        self.generator_names, self.selected = list(groups["generator"]), list(groups["selection"])
        self.variables: dict[str, Tensor] = {
            f"{group}.{name}": value if group == "weights" else value.detach().to(self.like).clone()
            for group, values in groups.items()
            for name, value in values.items()
        }
        check_groups(self.outer, groups)
        self.trained = {n: v for n, v in self.variables.items() if n.partition(".")[0] in self.outer}
        generated = {f"factors.{name}" for name in self.seeds} if self.generator is not None else set()
        # an adapted head's own variables make its start
        of_derived = ("generator.", "head.") if self.adapts_head else ("generator.",)
        self.only_derived = {n for n in self.trained if n in generated or n.startswith(of_derived)}

    def _groups(self, starts: Tensors) -> dict[str, Mapping[str, Tensor]]:
        """Group -> name -> first value, for every tensor that could be trained; `starts`: every task's factors."""
        found: dict[str, Mapping[str, Tensor]] = {group: {} for group in GROUPS}
        found["weights"] = {name: self.model.parameters[name] for name in self.trainable}
        found["factors"], found["head"] = starts, self.head.learned()
        if self.generator is not None:
            size = self.generator.size or feature_size(self.model, "the generator's size= says it")
            random = torch.Generator().manual_seed(self.seed)
            if generators.made(self.generator):  # one of the user's own need not run on torch's meta device
                start, what = self.generator.start, f"the variables of {type(self.generator).__name__}"
                refuse_large(lambda: start(self.seeds, size, torch.Generator()), what)
            own = self.generator.start(self.seeds, size, random)
            found["generator"] = {**own, **embedder(self.generator)}
        if self.selection is not None:
            found["selection"] = self.selection.start(self.model.sites)
        if self.inner is not None:
            moving = {name: starts[name] for name in self.adapted}
            if self.adapts_head:  # axes of 1 for ways and features
                moving.update(zip(HEAD, (self.like.new_zeros(1, 1, 1), self.like.new_zeros(1, 1))))
            inner, shapes = self.inner, {name: value.to("meta") for name, value in moving.items()}
            if solvers.made(inner):
                refuse_large(lambda: inner.rates(shapes), "the rates of the inner solver")
            rates = self.inner.rates(moving)
            found["rates"] = {name.removeprefix("rates."): value for name, value in rates.items()}
        return found

    # --- what the choices imply ----------------------------------------------------------------------------

    @property
    def like(self) -> Tensor:
        """A tensor of the learner's type and device."""
        return self.model.like

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of its images, where the backbone, one of `mp.backbones`, says them."""
        said = (getattr(self.model.module, "made_by", None) or {}).get("arguments", {})
        if not {"channels", "size"} <= set(said):
            return None
        return int(said["channels"]), int(said["size"]), int(said["size"])

    @property
    def adapts_head(self) -> bool:
        """Whether the head's tensors are inner variables."""
        return self.head.inner and self.inner is not None

    @property
    def closed_head(self) -> bool:
        """Whether the head is a closed form of the support set's current features."""
        return self.head_name != "learned" and not self.adapts_head

    @property
    def reads_center(self) -> bool:
        """Whether the head reads the mean feature of the training images."""
        return isinstance(self.head, OnFeatures) and self.head.reads_center

    @property
    def head_label(self) -> str:
        """The head as a protocol says it: its name, its metric, and how it normalises features."""
        if not isinstance(self.head, OnFeatures):
            return self.head_name
        said = (self.head_name, getattr(self.head, "metric", None), self.head.normalize)
        return " ".join(word for word in said if word)

    @property
    def per_input(self) -> bool:
        """Whether seeds are generated for each input."""
        return self.generator is not None and self.generator.per == "input"

    @property
    def trains_on_batch_statistics(self) -> bool:
        """Without inner steps, weights are trained on batch statistics, as ordinary training does."""
        return (
            (self.inner is None or self.inner.steps == 0)
            and "weights" in self.outer
            and self.model.norm == "running"
        )

    @property
    def full_weights(self) -> dict[str, str]:
        """Adapted Full updates and the outer weight that each is added to: `<p>.delta` -> `weights.<p>`."""
        full = [name for name, site in self.model.sites.items() if isinstance(site.format, Full)]
        return {
            f"{name}.delta": f"weights.{name}"
            for name in full
            if f"{name}.delta" in self.adapted and f"weights.{name}" in self.trained
        }

    def adapts_start(self, group: str) -> bool:
        """Whether a factor that the group, `"factors"` or `"generator"`, gives the start of is adapted."""
        names = self.factor_names if group == "factors" else list(self.seeds)
        return any(name in self.adapted for name in names)

    # --- views of the backbone -----------------------------------------------------------------------------

    @cached_property
    def body(self) -> AttachedModel:
        """The backbone without updates: the generator's features come from it."""
        return viewed(self.model, sites={})

    @cached_property
    def batch_model(self) -> AttachedModel:
        """The model in training, under the statistics of each task's own batch."""
        return viewed(self.model, norm="transductive", dropout=self.dropout)

    @cached_property
    def training_model(self) -> AttachedModel:
        """The model in training: with dropout, if that was asked for."""
        return viewed(self.model, dropout=True) if self.dropout else self.model

    # --- values --------------------------------------------------------------------------------------------

    def value(self, u: Tensors, name: str) -> Tensor:
        """An outer variable from `u`, or the learner's own."""
        found = u.get(name)
        return self.variables[name] if found is None else found

    def weights(self, u: Tensors) -> dict[str, Tensor] | None:
        """The backbone's parameters as they stand in `u`; None where they are not trained."""
        found = {n.removeprefix("weights."): v for n, v in u.items() if n.startswith("weights.")}
        return found or None

    def prepared(self, items: Items, name: str = "query") -> Items:
        """Items on the learner's device, uint8 images in floats; ValueError where their axes disagree."""
        return moved(items, self.model, name)

    def head_start(self, u: Tensors, features: Tensor, support: Items, ways: int) -> dict[str, Tensor]:
        """The head's tensors `(T, ...)` from the support set's features `(T, S, F)`.

        Raises ValueError where the support set has no class labels.
        """
        if support.y is None or support.regression:
            raise ValueError(f'head="{self.head_name}" needs class labels: use head="learned" here')
        learned = {name: wide(self.value(u, f"head.{name}")) for name in self.head.learned()}
        learned.update({name: wide(value) for name, value in self.head_constants("center").items()})
        more = (learned,) if learned else ()  # a head that learns nothing need not take any
        found = self.head.start(wide(features), support.y, ways, support.mask, *more)
        return {
            name: value.to(features) if value.is_floating_point() else value for name, value in found.items()
        }

    def head_constants(self, name: str = CENTER) -> dict[str, Tensor]:
        """What the head reads and nothing trains, under that name: the centre, where it has been measured."""
        return {} if self.center is None else {name: self.center.unsqueeze(0)}

    def start(self, u: Tensors, derived: Tensors, tasks: int) -> dict[str, Tensor]:
        """The inner variables at the start, `(T, ...)`: generated seeds, the factors' starts, an adapted head's."""
        begin = {}
        for name in self.adapted:
            seed = derived.get(f"seed.{name}")
            value = self.value(u, f"factors.{name}") if seed is None else seed
            begin[name] = value.expand(tasks, *value.shape[1:])
        if self.adapts_head:
            begin.update({name: derived[name] for name in HEAD})
        return begin


def _seeds(model: AttachedModel, starts: Tensors) -> dict[str, tuple[int, ...]]:
    named = [f"{name}.{local}" for name, site in model.sites.items() for local in site.format.generated]
    return {name: tuple(starts[name].shape[1:]) for name in named if starts[name].numel()}

"""Who moves what: a backbone with its updates, and which of its tensors belong to which loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft import generators as generator_folder
from metapeft import heads as head_folder
from metapeft.base import state
from metapeft.base.arguments import floating, whole
from metapeft.base.machine.devices import usable
from metapeft.base.machine.precision import check_autocast
from metapeft.episodes.episode import EpisodeBatch
from metapeft.generators.generator import Generator, with_own_features
from metapeft.heads.head import Head
from metapeft.hypergradients.problem import Result, resolve
from metapeft.inner.fixed_point import as_solver
from metapeft.inner.solver import Solver
from metapeft.learner import adaptation, bilevel, checks, choices
from metapeft.learner import settings as stored
from metapeft.learner.adapted_tasks import Adapted
from metapeft.learner.dropout_masks import ItemMasks
from metapeft.learner.fixed_layers import FixedLayers
from metapeft.learner.items import Items, moved, number_of_ways, refuse_labels, refuse_no_tensor
from metapeft.learner.losses import row_loss
from metapeft.learner.objectives import Objectives
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import copied, viewed
from metapeft.updates.inputs import mapped
from metapeft.updates.table import registry as update_registry

Tensors = Mapping[str, Tensor]


class Learner:
    """A bilevel method: one choice of what is frozen, outer, inner and generated.

    Everything that is trained is copied from `model` at construction, so several learners can start from one.

    Args:
        model: what `attach` returned.
        inner: the inner solver, `mp.inner.SGD(steps=5, lr=0.1)`; None for none.
        adapt: `"all"`, or globs over factor names that the inner solver moves (`"*.seed"`), beside an inner
            head.
        hypergradient: name of an engine, an engine, or a function `Problem -> Result`; without inner solver
            `"direct"`.
        outer: the groups that the outer loop trains: `"weights"` (W0 and the learned head), `"factors"` (the
            starts), `"generator"`, `"selection"`, `"rates"`, `"head"` (what a head itself learns).
        head: `"learned"` (the backbone's own classifier), `"zero"`, `"prototype-init"`, `"prototypes"`,
            `"ridge"`, `"knn"`, or a head of your own.
        generator: None, `mp.generators.MappingNet(...)` or a generator of your own.
        selection: None, `"softmax"` or a selection of your own.
        inner_data: `"support"`, or `"both"`: the mean over all items on both levels, in training.
        loss: `loss(outputs (rows, ...), targets (rows, ...), reduction="none")`, one value a row.
        test_steps: inner steps outside training; None for those of `inner`.
        device, dtype: of the learner's copies; None for the backbone's.
        autocast: `torch.bfloat16` for forwards in that type, with float32 weights, inner variables and losses.
        dropout: whether the backbone's dropout acts in training; `ItemMasks` says what its masks depend on (not on
            the inner step). Adaptation and evaluation are without it, and so are the generator's features.
        seed: of the generator's random start and of the dropout masks.
        name: what tables call it.

    Attributes:
        variables: every tensor of every group, `"<group>.<name>"`; `trained` are those of the outer groups.
        adapted: names of the factors that the inner solver moves. seeds: those that a generator can write.

    Raises:
        ValueError: groups that do not exist here or that the engine cannot reach, patterns that match
            nothing, options without effect.

    Example:
        >>> import metapeft as mp
        >>> model = mp.attach(mp.backbones.mlp(4, 3, hidden=(8,)), mp.LoRA(rank=2))
        >>> learner = Learner(model, mp.inner.SGD(steps=3, lr=0.1), outer=("weights", "factors"), head="zero")
        >>> sorted(learner.trained)[:2]
        ['factors.linear1.weight.A', 'factors.linear1.weight.B']
    """

    def __init__(
        self,
        model: AttachedModel,
        inner: Solver | Callable[..., Any] | None = None,
        adapt: str | Sequence[str] = "all",
        hypergradient: Any = None,
        outer: Sequence[str] = ("weights",),
        head: str | Head = "learned",
        generator: str | Generator | None = None,
        selection: Any = None,
        inner_data: str = "support",
        loss: Callable[..., Tensor] = F.cross_entropy,
        test_steps: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
        dropout: bool = False,
        seed: int = 0,
        name: str = "learner",
    ) -> None:
        device = checks.check_arguments(model, inner_data, test_steps, device, dtype, dropout, seed)
        self.name, self.seed, self.inner_data = name, seed, inner_data
        self.outer = choices.checked_groups(outer)
        self.head: Head = choices.resolved_head(head, head_folder.registry)
        self.head_name: str = stored.string_name(self.head, head_folder.registry)
        self.generator: Generator | None = choices.resolved_generator(generator, generator_folder.registry)
        self.selection: Any = choices.resolved_selection(selection, update_registry)
        self.loss, self.row_loss = loss, row_loss(loss)
        self.inner: Solver | None = inner if inner is None or isinstance(inner, Solver) else as_solver(inner)
        self.test_steps, self.adapt_patterns = test_steps, adapt
        self.method = ("direct" if inner is None else "unroll") if hypergradient is None else hypergradient
        self.engine = resolve(self.method)
        # what the copies were made of, and stay comparable to
        self.source = model
        self.model, self.trainable = copied(model, self.head_name == "learned", device, dtype)
        self.dropped = [] if self.head_name == "learned" else choices.classifier_parameters(self.model)
        self.generator = with_own_features(self.generator, self._like)
        check_autocast(autocast, self._like)
        self.autocast, self.dropout = autocast, dropout
        # with dropout (True) and without, once a batch was seen
        self.fixed_layers: dict[bool, FixedLayers] = {}
        self._name_variables()
        checks.check_parts(self)
        checks.check_engine(self)
        checks.note_few_steps(self)

    def _name_variables(self) -> None:
        """Collect every tensor under its group's name."""
        starts = self.model.factors()
        self.factor_names = list(starts)
        self.seeds = choices.seeds_of(self.model, starts)
        names = self.factor_names
        self.adapted = [] if self.inner is None else choices.adapted_names(self.adapt_patterns, names)
        groups = choices.groups(self, starts)
        self.generator_names, self.selected = list(groups["generator"]), list(groups["selection"])
        self.variables: dict[str, Tensor] = {
            f"{group}.{name}": value if group == "weights" else value.detach().to(self._like).clone()
            for group, values in groups.items()
            for name, value in values.items()
        }
        choices.check_groups(self.outer, groups)
        self.trained = {n: v for n, v in self.variables.items() if n.partition(".")[0] in self.outer}
        generated = {f"factors.{name}" for name in self.seeds} if self.generator is not None else set()
        # outer variables that only what is derived reads; an adapted head's own make its start
        groups_derived = ("generator.", "head.") if self.adapts_head else ("generator.",)
        self.only_derived = {n for n in self.trained if n in generated or n.startswith(groups_derived)}

    @property
    def _like(self) -> Tensor:
        return next(self.model.backbone.parameters())

    @property
    def adapts_head(self) -> bool:
        """Whether the head's tensors are inner variables."""
        return self.head.inner and self.inner is not None

    @property
    def per_input(self) -> bool:
        """Whether seeds are generated for each input."""
        return self.generator is not None and self.generator.per == "input"

    @property
    def trains_on_batch_statistics(self) -> bool:
        """Without inner loop, weights are trained on batch statistics, as ordinary training does."""
        return self.inner is None and "weights" in self.outer and self.model.norm == "running"

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

    def value(self, u: Tensors, name: str) -> Tensor:
        """An outer variable from `u`, or the learner's own."""
        found = u.get(name)
        return self.variables[name] if found is None else found

    def weights(self, u: Tensors) -> dict[str, Tensor] | None:
        """The backbone's parameters as they stand in `u`; None where they are not trained."""
        found = {n.removeprefix("weights."): v for n, v in u.items() if n.startswith("weights.")}
        return found or None

    def _own(self) -> dict[str, Tensor]:
        return {**self.variables, **{f"buffers.{n}": b for n, b in self.model.backbone.named_buffers()}}

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the learner, buffers of the backbone included, as copies."""
        return state.copies(self._own())

    def load_state(self, given: Tensors) -> None:
        """Take over the tensors of another learner, or of a checkpoint, that both have.

        Raises ValueError, and changes nothing, where no name is common or shapes differ.
        """
        state.take_over(self._own(), given, partly=True)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Learner:
        """Move every tensor of the learner, in place; None leaves device or dtype as it is."""
        device = None if device is None else usable(device)
        floating(dtype)
        own = self.state()
        self.model, _ = copied(self.model, True, device, dtype)
        self.generator = with_own_features(self.generator, self._like)
        for view in ("body", "batch_model", "training_model"):
            self.__dict__.pop(view, None)
        self.fixed_layers = {}
        self._name_variables()
        self.load_state(own)
        return self

    def with_engine(self, method: Any) -> Learner:
        """This learner with another hypergradient, as `Learner(hypergradient=method)` checks it; all tensors are shared.

        Raises:
            ValueError: an engine that cannot reach what is trained.
        """
        view = copy.copy(self)
        view.method, view.engine = method, resolve(method)
        checks.check_engine(view)
        return view

    def with_autocast(self, autocast: torch.dtype | None) -> Learner:
        """This learner with its forwards in another type, None for the weights' own; all tensors are shared.

        Raises:
            ValueError: a type that the weights do not go with.
        """
        check_autocast(autocast, self._like)
        view = copy.copy(self)
        view.autocast = autocast
        return view

    def settings(self) -> dict[str, Any]:
        """What this learner was made of, as JSON can say it; `mp.load` builds it again from that."""
        return stored.of_learner(self)

    def objectives(self, batch: EpisodeBatch, training: bool) -> Objectives:
        """The two objectives on a batch, its inputs on the learner's device and turned into floats once."""
        checks.check_batch(batch)
        made = self._objectives(
            Items(batch.support_x, batch.support_y, batch.support_mask),
            Items(batch.query_x, batch.query_y, batch.query_mask),
            batch.ways,
            training,
            ItemMasks(self.seed, batch, self._like.device) if training and self.dropout else None,
        )
        known = None if batch.classes is None else batch.ways
        refuse_labels(made.support, known, "support")
        if made.query is not None:
            refuse_labels(made.query, known, "query")
        return made

    def _objectives(
        self, support: Items, query: Items | None, ways: int, training: bool, masks: ItemMasks | None = None
    ) -> Objectives:
        own = None if query is None else self.prepared(query, "query")
        return Objectives(self, self.prepared(support, "support"), own, ways, training, masks)

    def prepared(self, items: Items, name: str = "query") -> Items:
        """Items on the learner's device, uint8 images in floats; ValueError where their axes disagree."""
        return moved(items, self.model, name)

    def hypergradient(self, batch: EpisodeBatch, w0: Tensors | None = None) -> Result:
        """The outer value of a batch and its gradient for everything that is trained; changes nothing.

        Args:
            batch: T episodes.
            w0: a start of the inner variables other than the learner's own (warm start), `(T, ...)`; the
                learner's own starts then get no gradient.

        Returns: a `Result`; `.grads` has the keys of `self.trained`, means over tasks; `.log["accuracy"]`
            `(T,)` where there are classes, `.log["statistics"]` the batch statistics that the forward took.

        Raises:
            ValueError: an outer variable that no loss reaches.
            NumericalError: an objective or a gradient that is not finite.
        """
        if not self.trained:
            raise ValueError("outer=() trains nothing, so there is no hypergradient")
        return bilevel.hypergradient(self, self.objectives(batch, training=True), w0)

    def solve(
        self, objectives: Objectives, steps: int | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Adapt to the support sets: the inner variables and what was derived from the batch; no graphs."""
        return adaptation.adapted(self, objectives, steps)

    def adapt_many(
        self,
        support_x: Any,
        support_y: Tensor,
        steps: int | None = None,
        mask: Tensor | None = None,
        ways: int | None = None,
    ) -> Adapted:
        """Adapt to T tasks at once.

        Args:
            support_x: leaves `(T, S, ...)`. support_y: `(T, S)`, or `(T, S, out)` for regression.
            steps: inner steps; None for the learner's. mask: `(T, S)`.
            ways: N; None for the largest label + 1.

        Returns: an `Adapted`: `many(x)` maps `(T, B, ...)` to logits `(T, B, N)` in one forward.

        Raises:
            ValueError: labels below 0 or not below `ways`, shapes that do not fit.
        """
        whole(ways=1 if ways is None else ways)
        ways = number_of_ways(support_y, ways)
        objectives = self._objectives(Items(support_x, support_y, mask), None, ways, training=False)
        w, made = self.solve(objectives, steps)
        return Adapted(self, objectives, w, made)

    def adapt(
        self,
        support_x: Any,
        support_y: Tensor,
        steps: int | None = None,
        ways: int | None = None,
        mask: Tensor | None = None,
    ) -> Adapted:
        """Adapt to one task: leaves `(S, ...)`, `(S,)`, mask `(S,)`; `adapted(x)` maps `(B, ...)` to `(B, N)`."""
        refuse_no_tensor(support_y, "support_y")
        x, mask = mapped(support_x, lambda x: x.unsqueeze(0)), None if mask is None else mask.unsqueeze(0)
        return self.adapt_many(x, support_y.unsqueeze(0), steps, mask, ways).task(0)

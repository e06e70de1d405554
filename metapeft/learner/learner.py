"""The learner: roles, and the two loops that move them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base import state
from metapeft.base.arguments import floating, whole
from metapeft.base.machine.devices import usable
from metapeft.base.trees import mapped
from metapeft.episodes.episode import EpisodeBatch
from metapeft.generators.features import with_own_features
from metapeft.generators.generator import Generator
from metapeft.generators.table import registry as generators
from metapeft.heads.head import Head
from metapeft.heads.table import registry as heads
from metapeft.hypergradients.problem import Result, resolve
from metapeft.inner.fixed_point import as_solver
from metapeft.inner.solver import Solver
from metapeft.inner.warm_start import as_warm_start
from metapeft.learner import adaptation, bilevel, checks, choices, views
from metapeft.learner import settings as stored
from metapeft.learner.adapted_tasks import Adapted, checked_names
from metapeft.learner.backbone_pass import BackbonePass
from metapeft.learner.dropout_masks import ItemMasks
from metapeft.learner.items import Items, Parts, of_batch, refuse_no_tensor
from metapeft.learner.labels import number_of_ways
from metapeft.learner.losses import row_losses
from metapeft.learner.objectives import Objectives
from metapeft.learner.roles import Roles
from metapeft.learner.summary import Summary, described, summarised
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import copied, feature_size
from metapeft.updates.table import registry as updates

Tensors = Mapping[str, Tensor]


class Learner(Roles):
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
        generator: None, `mp.generators.ClassEncoder(...)`, another of ours or one of your own.
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
        inner_loss: as `loss`, of the inner solver, so that `loss` is of the queries alone; None for the same.
        batch_loss: `batch_loss(outputs (T, B, ...), targets (T, B, ...), mask (T, B) or None) -> ()`: in training the
            outer objective of all tasks of a batch together, in place of the mean of their losses.

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
        inner_loss: Callable[..., Tensor] | None = None,
        batch_loss: Callable[[Tensor, Tensor | None, Tensor | None], Tensor] | None = None,
    ) -> None:
        device = checks.check_arguments(model, inner_data, test_steps, device, dtype, dropout, seed)
        self.name, self.seed, self.inner_data = name, seed, inner_data
        self.outer = choices.checked_groups(outer)
        self.head = choices.resolved_head(head, heads)
        self.head_name = stored.string_name(self.head, heads)
        self.generator = choices.resolved_generator(generator, generators)
        self.selection = choices.resolved_selection(selection, updates)
        self.loss, self.inner_loss, self.batch_loss = loss, inner_loss, batch_loss
        self.row_loss, self.inner_row_loss = row_losses(loss, inner_loss)
        self.inner = inner if inner is None or isinstance(inner, Solver) else as_solver(inner)
        self.test_steps, self.adapt_patterns = test_steps, adapt
        self.method = ("direct" if inner is None else "unroll") if hypergradient is None else hypergradient
        self.engine = resolve(self.method)
        self.autocast, self.dropout = autocast, dropout
        self._copy(model, device, dtype)
        checks.check(self)

    def _own(self) -> dict[str, Tensor]:
        buffers = {f"buffers.{n}": b for n, b in self.model.backbone.named_buffers()}
        center = {} if self.center is None else {"center": self.center}
        return {**self.variables, **buffers, **center}

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the learner, buffers of the backbone included, as copies."""
        return state.copies(self._own())

    def load_state(self, given: Tensors) -> None:
        """Take over the tensors of another learner, or of a checkpoint, that both have.

        Raises ValueError, and changes nothing, where no name is common or shapes differ.
        """
        own = self._own()
        center = given.get("center") if isinstance(given, Mapping) and self.reads_center else None
        if center is not None and self.center is None:
            known = self.model.classifier is not None
            own["center"] = self.like.new_zeros(feature_size(self.model, "") if known else center.shape)
        state.take_over(own, given, partly=True)
        self.center = own.get("center")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Learner:
        """Move every tensor of the learner, in place; None leaves device or dtype as it is."""
        device = None if device is None else usable(device)
        floating(dtype)
        own = self.state()
        self.model, _ = copied(self.model, True, device, dtype)
        self.generator = with_own_features(self.generator, self.like)
        for view in ("body", "batch_model", "training_model"):
            self.__dict__.pop(view, None)
        self.fixed_layers = {}
        self.center = None if self.center is None else self.center.to(self.like)
        self._name_variables()
        self.load_state(own)
        return self

    def summary(self) -> Summary:
        """A table of its groups of tensors, and who moves them: `print(learner.summary())`, or shown in a notebook."""
        return summarised(self)

    def __repr__(self) -> str:
        return f"Learner({described(self)})"

    def settings(self) -> dict[str, Any]:
        """What this learner was made of, as JSON can say it; `mp.load` builds it again from that."""
        return stored.of_learner(self)

    def with_engine(self, method: Any) -> Learner:
        """This learner with another hypergradient, checked as at construction; all tensors are shared.

        Raises:
            ValueError: an engine that cannot reach what is trained.
        """
        return views.with_engine(self, method)

    def with_autocast(self, autocast: torch.dtype | None) -> Learner:
        """This learner with its forwards in another type, None for the weights' own; all tensors are shared.

        Raises:
            ValueError: a type that the weights do not go with.
        """
        return views.with_autocast(self, autocast)

    def without_inner(self) -> Learner:
        """This learner without its inner loop: nothing adapts, all else as it is; all tensors are shared.

        What only the inner loop reads, rates, is not trained; a head that would be adapted stays where it starts.
        """
        return views.without_inner(self)

    def objectives(
        self, batch: EpisodeBatch, training: bool, shown: EpisodeBatch | None = None
    ) -> Objectives:
        """The two objectives on a batch, its inputs on the learner's device and turned into floats once.

        Args:
            shown: episodes, one a task, whose support sets the generator is shown in place of the tasks' own (a
                control).
        """
        checks.check_batch(batch)
        masks = ItemMasks(self.seed, batch, self.like.device) if training and self.dropout else None
        seen = None
        if shown is not None:
            checks.check_shown(self, batch, shown)
            seen = of_batch(shown, self.model).support
        return Objectives(BackbonePass(self, of_batch(batch, self.model), batch.ways, training, masks, seen))

    def hypergradient(self, batch: EpisodeBatch, w0: Tensors | None = None) -> Result:
        """The outer value of a batch and its gradient for everything that is trained; changes nothing.

        Args:
            batch: T episodes.
            w0: a start of the inner variables other than the learner's own (warm start), `(T, ...)`; the
                learner's own starts then get no gradient. Of a `WarmStart`, which `.w` then is too, the solver's
                state is kept.

        Returns: a `Result`; `.grads` has the keys of `self.trained`, means over tasks; `.log["accuracy"]`
            `(T,)` where there are classes, `.log["statistics"]` the batch statistics that the forward took.

        Raises:
            ValueError: an outer variable that no loss reaches.
            NumericalError: an objective or a gradient that is not finite.
        """
        if not self.trained:
            raise ValueError("outer=() trains nothing, so there is no hypergradient")
        return bilevel.hypergradient(self.objectives(batch, training=True), w0)

    def solve(
        self, objectives: Objectives, steps: int | None = None, w0: Tensors | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Adapt to the support sets: the inner variables and what was derived from the batch; no graphs."""
        return adaptation.adapted(objectives, steps, w0=None if w0 is None else as_warm_start(w0))

    def adapt_many(
        self,
        support_x: Any,
        support_y: Tensor,
        steps: int | None = None,
        mask: Tensor | None = None,
        ways: int | None = None,
        w0: Tensors | None = None,
    ) -> Adapted:
        """Adapt to T tasks at once.

        Args:
            support_x: leaves `(T, S, ...)`. support_y: `(T, S)`, or `(T, S, out)` for regression.
            steps: inner steps; None for the learner's. mask: `(T, S)`.
            ways: N; None for the largest label + 1.
            w0: where the inner variables start, `(T, ...)`, such as a trainer's `.inner`; with `steps=0` they stay
                as they are. None for the learner's own starts.

        Returns: an `Adapted`: `many(x)` maps `(T, B, ...)` to logits `(T, B, N)` in one forward.

        Raises:
            ValueError: labels below 0 or not below `ways`, shapes that do not fit.
        """
        whole(ways=1 if ways is None else ways)
        refuse_no_tensor(support_y, "support_y")
        ways = number_of_ways(support_y, ways)
        support = self.prepared(Items(support_x, support_y, mask), "support")
        objectives = Objectives(BackbonePass(self, Parts(support), ways, training=False))
        return Adapted(objectives, *self.solve(objectives, steps, w0))

    def adapt(
        self,
        support_x: Any,
        support_y: Tensor,
        steps: int | None = None,
        ways: int | None = None,
        mask: Tensor | None = None,
        w0: Tensors | None = None,
        classes: Sequence[str] | None = None,
    ) -> Adapted:
        """Adapt to one task: leaves `(S, ...)`, `(S,)`, mask `(S,)`; `adapted(x)` maps `(B, ...)` to `(B, N)`.

        `w0`: where its inner variables start, `(1, ...)`, such as `trainer.inner.task(0)`; see `adapt_many`.
        `classes`: names of the labels 0 .. N - 1, which `adapted.predict` then says.
        """
        refuse_no_tensor(support_y, "support_y")
        x, mask = mapped(support_x, lambda x: x.unsqueeze(0)), None if mask is None else mask.unsqueeze(0)
        found = self.adapt_many(x, support_y.unsqueeze(0), steps, mask, ways, w0).task(0)
        found.classes = checked_names(classes, found.ways)
        return found

"""The two objectives of a learner on one batch of tasks, as pure functions of outer and inner variables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.machine.precision import forward_precision
from metapeft.heads.head import HEAD
from metapeft.learner import fixed_layers
from metapeft.learner.dropout_masks import ItemMasks
from metapeft.learner.items import Items
from metapeft.learner.losses import correct, losses, refuse_classes, refuse_targets
from metapeft.updates.attached import AttachedModel
from metapeft.updates.inputs import leaves, mapped
from metapeft.updates.layers.recording import Place, Recording, Replay

if TYPE_CHECKING:
    from metapeft.learner.learner import Learner

Tensors = Mapping[str, Tensor]


class Objectives:
    """Inner and outer objective `(u, w, derived) -> (T,)` of a learner on a batch.

    `u` holds outer variables by name, those that are missing are the learner's own; `w` the inner variables;
    `derived` what `derive` made of `u` and the batch.

    Args:
        learner: whose model, head, generator and selection are used.
        support, query: the two parts of the episodes; `query` is None where tasks are only adapted.
        ways: the number of classes.
        training: whether batch statistics and `inner_data="both"` apply.
        masks: of dropout; None for none.
    """

    def __init__(
        self,
        learner: Learner,
        support: Items,
        query: Items | None,
        ways: int,
        training: bool,
        masks: ItemMasks | None = None,
    ) -> None:
        self.learner, self.ways = learner, ways
        self.support, self.query = support, query
        self.tasks = leaves(support.x)[0].shape[0]
        self.batch_statistics = training and learner.trains_on_batch_statistics
        self.both = training and learner.inner_data == "both"
        self.masks = masks
        self.statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.places: dict[str, list[Place]] = {}  # of what is kept, by part

    # --- what the engines call -----------------------------------------------------------------------------

    def derive(self, u: Tensors, kept: bool = True) -> dict[str, Tensor]:
        """What depends on `u` and the batch but not on `w`: seeds, the start of an adapted head, fixed layers.

        Names: `seed.<name>` (a seed a task), `support.<name>` and `query.<name>` (a seed an input), `head.weight`,
        `head.bias`, and of the layers before the first that inner steps move `kept.<part>.<number>`.

        Args:
            kept: False leaves those out, and the objectives run all layers each time.
        """
        seeds = self._seeds(u)
        derived = dict(seeds)
        if kept:
            derived.update(fixed_layers.kept(self, u, seeds))
        if self.learner.adapts_head:
            known = derived if "kept.support.0" in derived else seeds
            own = self.run(u, {}, known, "support")
            derived.update(self._head_start(u, own))
        return derived

    def start(self, u: Tensors, derived: Tensors) -> dict[str, Tensor]:
        """The inner variables at the start, `(T, ...)`."""
        learner, begin = self.learner, {}
        for name in learner.adapted:
            seed = derived.get(f"seed.{name}")
            value = learner.value(u, f"factors.{name}") if seed is None else seed
            begin[name] = value.expand(self.tasks, *value.shape[1:])
        if learner.adapts_head:
            begin.update({name: derived[name] for name in HEAD})
        return begin

    def inner(self, u: Tensors, w: Tensors, derived: Tensors) -> Tensor:
        """Mean loss over the support set, or over all items with `inner_data="both"`: `(T,)`."""
        part = "both" if self.both else "support"
        return self._loss(self._logits(u, w, derived, part), part)

    def outer(self, u: Tensors, w: Tensors, derived: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the query set, or over all items with `inner_data="both"`; the query's accuracy."""
        part = "both" if self.both else "query"
        logits = self._logits(u, w, derived, part)
        loss = self._loss(logits, part)
        query = self._items("query")
        own = logits.detach()[:, -query.count :]
        hits = correct(own, query)
        return loss, {"logits": own} if hits is None else {"logits": own, "accuracy": hits}

    # --- what adapted tasks call ---------------------------------------------------------------------------

    def scored(self, w: Tensors, derived: Tensors) -> tuple[Tensor, Tensor]:
        """Loss `(T,)` and logits `(T, B, N)` of the query set outside training."""
        logits = self.predict(w, derived)
        return self.loss_of(logits), logits

    def loss_of(self, logits: Tensor) -> Tensor:
        """Loss `(T,)` of the query set with these logits `(T, B, N)`."""
        return self._loss(logits, "query")

    def for_query(self, query: Items) -> Objectives:
        """The same tasks with other queries, already on the learner's device and in floats."""
        return Objectives(self.learner, self.support, query, self.ways, training=False)

    def predict(self, w: Tensors, derived: Tensors) -> Tensor:
        """Logits of the query set, `(T, B, N)`; seeds per input are generated for it."""
        if self.learner.per_input and not any(name.startswith("query.") for name in derived):
            derived = {**derived, **self._seeds({})}
        return self._logits({}, w, derived, "query")

    def factors(self, w: Tensors, derived: Tensors) -> dict[str, Tensor]:
        """The factors that a task ends with, selection applied: `(T or 1, ...)`; no seeds per input."""
        return self._compose({}, w, derived, None)

    def head(self, w: Tensors, derived: Tensors) -> dict[str, Tensor]:
        """The head's tensors `(T, ...)`; empty for the backbone's own classifier."""
        own = {name: value for name, value in w.items() if name.startswith("head.")}
        if own or self.learner.head_name == "learned":
            return own
        return self._head_start({}, self.run({}, w, derived, "support"))

    # --- parts ---------------------------------------------------------------------------------------------

    def _items(self, part: str) -> Items:
        if part == "both":
            return self._everything
        if part == "support":
            return self.support
        if self.query is None:
            raise ValueError("the batch has no query set")
        return self.query

    @cached_property
    def _everything(self) -> Items:
        return self.support.with_items(self._items("query"))

    def _loss(self, logits: Tensor, part: str) -> Tensor:
        learner, items = self.learner, self._items(part)
        if learner.loss is F.cross_entropy:
            refuse_classes(logits, items, self.ways)
        else:
            refuse_targets(
                logits, items, getattr(F, getattr(learner.loss, "__name__", ""), None) is learner.loss
            )
        return losses(learner.row_loss, logits, items)

    def _head_start(self, u: Tensors, support_features: Tensor) -> dict[str, Tensor]:
        learner, y = self.learner, self.support.y
        if y is None or self.support.regression:
            raise ValueError(f'head="{learner.head_name}" needs class labels: use head="learned" here')
        learned = {name: learner.value(u, f"head.{name}") for name in learner.head.learned()}
        more = (learned,) if learned else ()  # a head that learns nothing need not take any
        return learner.head.start(support_features, y, self.ways, self.support.mask, *more)

    def _seeds(self, u: Tensors) -> dict[str, Tensor]:
        """Generated seeds: start plus what the mapping net makes of the features."""
        learner = self.learner
        generator = learner.generator
        if generator is None:
            return {}
        parameters = {name: learner.value(u, f"generator.{name}") for name in learner.generator_names}
        seeds: dict[str, Tensor] = {}
        for part, features in self.generator_features.items():
            mask = self.support.mask if part == "seed" else None
            for name, added in generator(parameters, learner.seeds, features, mask).items():
                begin = learner.value(u, f"factors.{name}")
                seeds[f"{part}.{name}"] = added + (begin if part == "seed" else begin.unsqueeze(1))
        return seeds

    @cached_property
    def generator_features(self) -> dict[str, Tensor]:
        """Constant features, `(T, B, F)`: `seed` of the support set, or of `support` and `query` per input.

        They come from the body with the current W0, no update and no gradient, or from the generator's own.
        """
        if not self.learner.per_input:
            return {"seed": self._frozen_features(self.support)}
        parts = {"query": self.query} if self.query is not None else {}
        if self.outer_reads_support or self.learner.inner is not None:
            parts["support"] = self.support
        return {name: self._frozen_features(items) for name, items in parts.items()}

    @property
    def outer_reads_support(self) -> bool:
        """Whether the forward on the queries also runs on the support set."""
        learner = self.learner
        closed = learner.head_name != "learned" and not learner.adapts_head
        return self.both or self.batch_statistics or closed or learner.model.norm == "support"

    @torch.no_grad()
    def _frozen_features(self, items: Items) -> Tensor:
        learner = self.learner
        if learner.generator is not None and learner.generator.features is not None:
            rows = mapped(items.x, lambda value: value.flatten(0, 1))
            features: Tensor = learner.generator.features(rows)
            size = learner.generator.size
            if features.dim() != 2 or (size is not None and features.shape[1] != size):
                raise ValueError(
                    f"the generator's features have shape {tuple(features.shape)}: (rows, {size or 'F'}) is needed, as "
                    "size= says"
                )
            return torch.unflatten(features, 0, (self.tasks, items.count))
        options: dict[str, Any] = {}
        if learner.model.norm == "support":
            options["support"] = (self.support.x, {}, self.support.mask)
        elif learner.model.norm == "transductive":
            options["mask"] = items.mask
        return self._forward(learner.body, items, {}, True, **options)

    def _compose(self, u: Tensors, w: Tensors, derived: Tensors, part: str | None) -> dict[str, Tensor]:
        """The factors that the model runs with: inner values, generated seeds or starts; then the selection.

        Args:
            part: `"support"`, `"query"` or `"both"`: whose seeds per input are meant; None for none.
        """
        learner = self.learner
        factors: dict[str, Tensor] = {}
        for name in learner.factor_names:
            if name in w:
                factors[name] = w[name]
            elif f"seed.{name}" in derived:
                factors[name] = derived[f"seed.{name}"]
            elif part == "both" and f"query.{name}" in derived:
                factors[name] = torch.cat([derived[f"support.{name}"], derived[f"query.{name}"]], 1)
            elif f"{part}.{name}" in derived:
                factors[name] = derived[f"{part}.{name}"]
            else:
                factors[name] = learner.value(u, f"factors.{name}")
        if learner.selection is None:
            return factors
        logits = {name: learner.value(u, f"selection.{name}") for name in learner.selected}
        selected: dict[str, Tensor] = learner.selection(learner.model.sites, factors, logits)
        return selected

    def run(
        self, u: Tensors, w: Tensors, derived: Tensors, part: str, kept: Recording | Replay | None = None
    ) -> Tensor:
        """One forward of the backbone on the items of `part`: features `(T, B, F)` for a head, or its own logits.

        Args:
            kept: records what the first layers give, or hands it back; by default what is derived says.
        """
        learner, items = self.learner, self._items(part)
        factors = self._compose(u, w, derived, part)
        kept = kept or fixed_layers.replay(self, derived, part)
        options: dict[str, Any] = {"weights": learner.weights(u), "kept": kept}
        model = learner.model if self.masks is None else learner.training_model
        if self.batch_statistics:
            model = learner.batch_model
            options.update(mask=items.mask, statistics=self.statistics)
        elif model.norm == "support":
            own = items.x if part == "support" else self.support.x
            apart = learner.per_input and part != "support"
            of_support = self._compose(u, w, derived, "support") if apart else factors
            options["support"] = (own, of_support, self.support.mask)
        elif model.norm == "transductive":
            options["mask"] = items.mask
        if self.masks is not None:
            options["masks"] = self.masks.of(part, model.norm == "support" and part != "support")
        return self._forward(model, items, factors, learner.head_name != "learned", **options)

    def _forward(
        self, model: AttachedModel, items: Items, factors: Tensors, features: bool, **options: Any
    ) -> Tensor:
        """Features or logits in the weights' type, computed in the learner's `autocast`."""
        like = next(iter(model.parameters.values()))
        with forward_precision(self.learner.autocast, like):
            run = model.features if features else model
            output: Tensor = run(items.x, factors, **options)
        return output.to(like.dtype)

    def _logits(self, u: Tensors, w: Tensors, derived: Tensors, part: str) -> Tensor:
        """Logits `(T, B, N)` of the items of `part`, by the head that the learner has.

        A head in closed form reads the support set's features under the same factors, and batch statistics
        are those of support and query together: then one forward runs on both. Under `norm="transductive"`
        the support set is a batch of its own, so that the head does not depend on queries.
        """
        learner = self.learner
        tensors = {name: value for name, value in w.items() if name.startswith("head.")}
        closed = not tensors and learner.head_name != "learned"
        if closed and learner.model.norm == "transductive":
            tensors, closed = self._head_start(u, self.run(u, w, derived, "support")), False
        run = "both" if part == "query" and (closed or self.batch_statistics) else part
        output = self.run(u, w, derived, run)
        if closed:
            tensors = self._head_start(u, output[:, : self.support.count])
        if run != part:
            output = output[:, self.support.count :]
        return learner.head.logits(output, tensors) if tensors else output

"""The two objectives of a learner on one batch of tasks, as pure functions of outer and inner variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metapeft.updates.inputs import join, leaves, mapped

if TYPE_CHECKING:
    from metapeft.learner import Learner

Tensors = Mapping[str, Tensor]
# Entries of u that depend on the batch but not on the inner variables are handed to the engine under this prefix.
DERIVED = "derived."
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class Items:
    """Some inputs of every task with their labels: `x` leaves `(T, B, ...)`, `y (T, B, ...)`, `mask (T, B)`."""

    x: Any
    y: Tensor | None
    mask: Tensor | None = None

    @property
    def count(self) -> int:
        return leaves(self.x)[0].shape[1]

    def with_items(self, other: Items) -> Items:
        """These items followed by those of `other`."""
        y = None if self.y is None or other.y is None else torch.cat([self.y, other.y], 1)
        masks = (self.mask, other.mask)
        if any(mask is not None for mask in masks):
            sizes = ((leaves(part.x)[0].shape[:2], part.mask, leaves(part.x)[0].device) for part in (self, other))
            full = [torch.ones(s, dtype=torch.bool, device=d) if m is None else m for s, m, d in sizes]
            return Items(join(self.x, other.x), y, torch.cat(full, 1))
        return Items(join(self.x, other.x), y)


class Objectives:
    """Inner and outer objective `(u, w) -> (T,)` of a learner on a batch.

    Args:
        learner: whose model, head, generator and selection are used.
        support, query: the two parts of the episodes; `query` is None where tasks are only adapted.
        ways: the number of classes.
        training: whether batch statistics and `inner_data="both"` apply.
    """

    def __init__(self, learner: Learner, support: Items, query: Items | None, ways: int, training: bool) -> None:
        self.learner, self.ways = learner, ways
        self.support, self.query = support, query
        self.tasks = leaves(support.x)[0].shape[0]
        self.batch_statistics = training and learner.trains_on_batch_statistics
        self.both = training and learner.inner_data == "both"
        self.statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._generator_features: dict[str, Tensor] | None = None

    def derive(self, u: Tensors) -> dict[str, Tensor]:
        """What depends on `u` and the batch but not on `w`: generated seeds and the start of an inner head.

        Names: `seed.<name>` (per task), `support.<name>` and `query.<name>` (per input), `head.weight`, `head.bias`.
        """
        derived = self._seeds(u)
        if self.learner.head.inner:
            features = self._run(u, {}, derived, "support", features=True)
            derived.update(self.learner.head.start(features, self._labels(), self.ways, self.support.mask, None))
        return derived

    def start(self, u: Tensors, derived: Tensors) -> dict[str, Tensor]:
        """The inner variables at the start, `(T, ...)`."""
        learner, begin = self.learner, {}
        for name in learner.adapted:
            value = derived.get(f"seed.{name}", learner.value(u, f"factors.{name}"))
            begin[name] = value.expand(self.tasks, *value.shape[1:])
        if learner.head.inner:
            begin.update({name: derived[name] for name in HEAD})
        return begin

    def inner(self, u: Tensors, w: Tensors, derived: Tensors) -> Tensor:
        """Mean loss over the support set, or over all items with `inner_data="both"`: `(T,)`."""
        part = "both" if self.both else "support"
        return self._loss(self._logits(u, w, derived, part), self._items(part))

    def outer(self, u: Tensors, w: Tensors, derived: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the query set, or over all items with `inner_data="both"`; and the query's accuracy."""
        part = "both" if self.both else "query"
        logits = self._logits(u, w, derived, part)
        loss = self._loss(logits, self._items(part))
        query = self._items("query")
        logits = logits[:, -query.count :]
        aux = {"logits": logits.detach()}
        hits = correct(logits, query)
        return loss, aux if hits is None else {**aux, "accuracy": hits}

    def scored(self, w: Tensors, derived: Tensors) -> tuple[Tensor, Tensor]:
        """Loss `(T,)` and logits `(T, B, N)` of the query set outside training."""
        logits = self.predict(w, derived)
        return self._loss(logits, self._items("query")), logits

    def for_query(self, query: Items) -> Objectives:
        """The same tasks with other queries, their inputs brought to the learner's device and into floats."""
        return Objectives(self.learner, self.support, self.learner.prepared(query), self.ways, training=False)

    def predict(self, w: Tensors, derived: Tensors) -> Tensor:
        """Logits of the query set, `(T, B, N)`; seeds per input are generated for it."""
        if self.learner.generator is not None and self.learner.generator.per == "input":
            derived = {**derived, **self._seeds({})}
        return self._logits({}, w, derived, "query")

    def factors(self, u: Tensors, w: Tensors, derived: Tensors) -> dict[str, Tensor]:
        """The factors that a task ends with, selection applied: name -> `(T or 1, ...)`; no seeds per input."""
        return self._compose(u, w, derived, None)

    def head(self, u: Tensors, w: Tensors, derived: Tensors) -> dict[str, Tensor]:
        """The head's tensors `(T, ...)`; empty for the backbone's own classifier."""
        learner = self.learner
        if learner.head_name == "learned":
            return {}
        if learner.head.inner:
            return {name: w.get(name, derived[name]) for name in HEAD}
        return self._head_start(u, self._run(u, w, derived, "support", features=True))

    # --- parts ---------------------------------------------------------------------------------------------

    def _labels(self) -> Tensor:
        if self.support.y is None or self.support.y.is_floating_point():
            raise ValueError(f'head="{self.learner.head_name}" needs class labels; use head="learned" for regression')
        return self.support.y

    def _head_start(self, u: Tensors, support_features: Tensor) -> dict[str, Tensor]:
        learner = self.learner
        learned = {name: learner.value(u, f"head.{name}") for name in learner.head.learned()}
        return learner.head.start(support_features, self._labels(), self.ways, self.support.mask, learned or None)

    @cached_property
    def _everything(self) -> Items:
        return self.support.with_items(self._items("query"))

    def _loss(self, logits: Tensor, items: Items) -> Tensor:
        """Loss per item on flattened rows, further axes averaged, then averaged per task under its mask."""
        if items.y is None:
            raise ValueError("these items have no labels")
        tasks, count = logits.shape[:2]
        values = self.learner.loss(logits.flatten(0, 1), items.y.flatten(0, 1), reduction="none")
        if values.dim() == 0 or values.shape[0] != tasks * count:
            raise ValueError(
                f"loss returned shape {tuple(values.shape)} for {tasks * count} items: called with "
                'reduction="none" it must return one value an item'
            )
        values = values.reshape(tasks, count, -1).mean(-1)
        if items.mask is None:
            return values.mean(1)
        weight = items.mask.to(values)
        return (values * weight).sum(1) / weight.sum(1)

    def _seeds(self, u: Tensors) -> dict[str, Tensor]:
        """Generated seeds: start plus what the mapping net makes of the features."""
        learner = self.learner
        generator = learner.generator
        if generator is None:
            return {}
        parameters = {name: learner.value(u, f"generator.{name}") for name in learner.generator_names}
        seeds: dict[str, Tensor] = {}
        for part, features in self._features_for_generator(u).items():
            mask = self.support.mask if part == "seed" else None
            for name, added in generator(parameters, learner.seeds, features, mask).items():
                begin = learner.value(u, f"factors.{name}")
                seeds[f"{part}.{name}"] = added + (begin if part == "seed" else begin.unsqueeze(1))
        return seeds

    @torch.no_grad()
    def _features_for_generator(self, u: Tensors) -> dict[str, Tensor]:
        """Features without update and without gradient: `seed` of the support set, or of each part per input."""
        if self._generator_features is None:
            per_task = self.learner.generator is not None and self.learner.generator.per == "task"
            self._generator_features = {"seed" if per_task else "support": self._frozen_features(u, self.support)}
            if not per_task and self.query is not None:
                self._generator_features["query"] = self._frozen_features(u, self.query)
        return self._generator_features

    def _frozen_features(self, u: Tensors, items: Items) -> Tensor:
        learner = self.learner
        if learner.generator is not None and learner.generator.features is not None:
            rows = mapped(items.x, lambda value: value.flatten(0, 1))
            features: Tensor = learner.generator.features(rows)
            return features.unflatten(0, (self.tasks, items.count))
        options: dict[str, Any] = {"weights": learner.weights(u)}
        if learner.model.norm == "support":
            options["support"] = (self.support.x, {}, self.support.mask)
        elif learner.model.norm == "transductive":
            options["mask"] = items.mask
        return learner.body.features(items.x, {}, **options)

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
        return learner.selection(learner.model.sites, factors, logits)

    def _items(self, part: str) -> Items:
        if part == "both":
            return self._everything
        if part == "support":
            return self.support
        if self.query is None:
            raise ValueError("the batch has no query set")
        return self.query

    def _run(self, u: Tensors, w: Tensors, derived: Tensors, part: str, features: bool) -> Tensor:
        """One forward of the backbone on the items of `part`: features `(T, B, F)`, or its own logits."""
        learner, items = self.learner, self._items(part)
        factors = self._compose(u, w, derived, part)
        options: dict[str, Any] = {"weights": learner.weights(u)}
        model = learner.model
        if self.batch_statistics:
            model = learner.batch_model
            options.update(mask=items.mask, statistics=self.statistics)
        elif model.norm == "support":
            same = part == "support"
            own = factors if same else self._compose(u, w, derived, "support")
            options["support"] = (items.x if same else self.support.x, own, self.support.mask)
        elif model.norm == "transductive":
            options["mask"] = items.mask
        return model.features(items.x, factors, **options) if features else model(items.x, factors, **options)

    def _logits(self, u: Tensors, w: Tensors, derived: Tensors, part: str) -> Tensor:
        """Logits `(T, B, N)` of the items of `part`, by the head that the learner has."""
        head = self.learner.head
        if self.learner.head_name == "learned":
            return self._run(u, w, derived, part, features=False)
        tensors = {name: value for name, value in w.items() if name.startswith("head.")}
        if head.inner and not tensors:
            tensors = {name: derived[name] for name in HEAD}
        if tensors:
            return head.logits(self._run(u, w, derived, part, features=True), tensors)
        # a head in closed form reads the support set's features under the same factors: one forward for both
        features = self._run(u, w, derived, "support" if part == "support" else "both", features=True)
        tensors = self._head_start(u, features[:, : self.support.count])
        return head.logits(features[:, self.support.count :] if part == "query" else features, tensors)


def correct(logits: Tensor, items: Items) -> Tensor | None:
    """Accuracy of each task, `(T,)`; None where the labels are no classes."""
    if items.y is None or items.y.is_floating_point() or logits.dim() != 3 or items.y.dim() != 2:
        return None
    hits = (logits.detach().argmax(-1) == items.y).to(logits.dtype)
    if items.mask is None:
        return hits.mean(1)
    weight = items.mask.to(hits)
    return (hits * weight).sum(1) / weight.sum(1)

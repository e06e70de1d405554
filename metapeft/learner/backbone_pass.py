"""The forward of a learner's backbone on a part of a batch of tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metapeft.base.machine.precision import forward_precision
from metapeft.base.trees import mapped
from metapeft.generators.features import features_of
from metapeft.learner.dropout_masks import ItemMasks
from metapeft.learner.items import Items, Parts
from metapeft.learner.roles import Roles, Tensors
from metapeft.updates.attached import AttachedModel
from metapeft.updates.layers.recording import Place, Recording, Replay


@dataclass(eq=False)
class BackbonePass:
    """Runs the backbone on `"support"`, `"query"` or `"both"`, all tasks at once.

    Args:
        roles: whose model, generator and selection are used.
        parts: the items of the episodes.
        ways: the number of classes.
        training: whether batch statistics and `inner_data="both"` apply.
        masks: of dropout; None for none.
        shown: the support sets that the generator is shown in place of the tasks' own; None for those.

    Attributes:
        statistics: of the batch, as the last forward took them, layer -> (mean, variance, count).
        places: of what is kept of fixed layers, by part.
    """

    roles: Roles
    parts: Parts
    ways: int
    training: bool
    masks: ItemMasks | None = None
    shown: Items | None = None
    statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    _features: dict[str, Tensor] | None = None

    @cached_property
    def tasks(self) -> int:
        """T."""
        return self.parts.support.tasks

    @cached_property
    def batch_statistics(self) -> bool:
        """Whether the statistics are those of each task's own batch."""
        return self.training and self.roles.trains_on_batch_statistics

    @cached_property
    def both(self) -> bool:
        """Whether both objectives are means over all items."""
        return self.training and self.roles.inner_data == "both"

    @cached_property
    def runs(self) -> dict[str, tuple[str, ...]]:
        """Part -> the parts on which the backbone runs for its logits; the first has the items themselves.

        A head in closed form reads the support set's features under the same factors, and batch statistics are those
        of support and query together: then one forward runs on both. Under `norm="transductive"` the support set is
        a batch of its own, so that the head does not depend on queries.
        """
        apart = self.roles.closed_head and self.roles.model.norm == "transductive"
        together = self.batch_statistics or (self.roles.closed_head and not apart)
        found: dict[str, tuple[str, ...]] = {
            part: (part, "support") if apart else (part,) for part in self.parts.names
        }
        if together and "query" in found:
            found["query"] = ("both",)
        return found

    @property
    def inner_runs(self) -> tuple[str, ...]:
        """The parts on which the backbone runs for the inner objective."""
        return self.runs["both" if self.both else "support"]

    @property
    def outer_runs(self) -> tuple[str, ...]:
        """Likewise for the outer one; none without queries."""
        return self.runs.get("both" if self.both else "query", ())

    @property
    def outer_reads_support(self) -> bool:
        """Whether the forward on the queries also runs on the support set."""
        roles = self.roles
        return self.both or self.batch_statistics or roles.closed_head or roles.model.norm == "support"

    def run(
        self, u: Tensors, w: Tensors, derived: Tensors, part: str, fixed: Recording | Replay | None = None
    ) -> Tensor:
        """One forward on the items of `part`: features `(T, B, F)` for a head, or the backbone's own logits.

        Args:
            u: outer variables. w: inner ones. derived: generated seeds and what was kept, see `derived.py`.
            fixed: records what the first layers give, or hands it back; by default what is derived says.

        Raises:
            LookupError: what is derived was kept of other parts only.
        """
        roles, items = self.roles, self.parts[part]
        factors = self.factors(u, w, derived, part)
        model = roles.model if self.masks is None else roles.training_model
        options: dict[str, Any] = {
            "weights": roles.weights(u),
            "recording": fixed or self._replay(derived, part),
        }
        if self.batch_statistics:
            model = roles.batch_model
            options.update(mask=items.mask, statistics=self.statistics)
        elif model.norm == "support":
            own = items.x if part == "support" else self.parts.support.x
            apart = roles.per_input and part != "support"
            of_support = self.factors(u, w, derived, "support") if apart else factors
            options["support"] = (own, of_support, self.parts.support.mask)
        elif model.norm == "transductive":
            options["mask"] = items.mask
        if self.masks is not None:
            options["masks"] = self.masks.of(part, model.norm == "support" and part != "support")
        return self._forward(model, items, factors, roles.head_name != "learned", **options)

    def factors(self, u: Tensors, w: Tensors, derived: Tensors, part: str | None) -> dict[str, Tensor]:
        """The factors that the model runs with: inner values, generated seeds or starts; then the selection.

        Args:
            part: whose seeds per input are meant; None for none.
        """
        roles = self.roles
        factors: dict[str, Tensor] = {}
        for name in roles.factor_names:
            if name in w:
                factors[name] = w[name]
            elif f"seed.{name}" in derived:
                factors[name] = derived[f"seed.{name}"]
            elif part == "both" and f"query.{name}" in derived:
                factors[name] = torch.cat([derived[f"support.{name}"], derived[f"query.{name}"]], 1)
            elif f"{part}.{name}" in derived:
                factors[name] = derived[f"{part}.{name}"]
            else:
                factors[name] = roles.value(u, f"factors.{name}")
        if roles.selection is None:
            return factors
        logits = {name: roles.value(u, f"selection.{name}") for name in roles.selected}
        selected: dict[str, Tensor] = roles.selection(roles.model.sites, factors, logits)
        return selected

    @property
    def seen(self) -> Items:
        """The items that the generator is shown: the support set, or another task's in a control."""
        return self.parts.support if self.shown is None else self.shown

    def features(self, embedder: Tensors | None = None) -> dict[str, Tensor]:
        """Features for the generator, part -> `(T, B, F)`: of the support set, or of all inputs per input.

        They come from the body with the current W0, no update and no gradient, or from what the generator says, and are
        constants, computed once, unless they come from a module that is trained.

        Args:
            embedder: the parameters of such a module, `embedder.<name>`.
        """
        if embedder:
            return {part: self._own_features(self._items(part), embedder) for part in self._read_parts()}
        if self._features is None:
            with torch.no_grad():
                self._features = {part: self._features_of(self._items(part)) for part in self._read_parts()}
        return self._features

    def _read_parts(self) -> list[str]:
        """The parts of which the generator reads features."""
        if not self.roles.per_input:
            return ["support"]
        parts = ["query"] if self.parts.query is not None else []
        if self.outer_reads_support or self.roles.inner is not None:
            parts.append("support")
        return parts

    def _items(self, part: str) -> Items:
        return self.seen if part == "support" else self.parts[part]

    def _own_features(self, items: Items, embedder: Tensors) -> Tensor:
        """Features of the generator's own module, or of the inputs themselves."""
        generator = self.roles.generator
        if generator is None or generator.features is None:
            raise LookupError("the generator has no features of its own")
        rows = mapped(items.x, lambda value: value.flatten(0, 1))
        return torch.unflatten(features_of(generator, rows, embedder), 0, (items.tasks, items.count))

    def _features_of(self, items: Items) -> Tensor:
        roles = self.roles
        if roles.generator is not None and roles.generator.features is not None:
            return self._own_features(items, {})
        options: dict[str, Any] = {}
        if roles.model.norm == "support":
            options["support"] = (self.seen.x, {}, self.seen.mask)
        elif roles.model.norm == "transductive":
            options["mask"] = items.mask
        return self._forward(roles.body, items, {}, True, **options)

    def _replay(self, derived: Tensors, part: str) -> Replay | None:
        """What hands back what was kept of a part; None where nothing is.

        To run all layers instead where only other parts were kept would lose gradients.
        """
        if not any(name.startswith("kept.") for name in derived):
            return None
        if f"kept.{part}.0" not in derived or part not in self.places:
            raise LookupError(
                f"nothing was kept of {part!r}: what is derived belongs to another batch, or another use"
            )
        places = self.places[part]
        return Replay(places, [derived[f"kept.{part}.{i}"] for i in range(len(places))])

    def _forward(
        self, model: AttachedModel, items: Items, factors: Tensors, features: bool, **options: Any
    ) -> Tensor:
        """Features or logits in the weights' type, computed in the learner's `autocast`."""
        like = model.like
        with forward_precision(self.roles.autocast, like):
            run = model.features if features else model
            output: Tensor = run(items.x, factors, **options)
        return output.to(like.dtype)

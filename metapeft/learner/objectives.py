"""The two objectives of a learner on one batch of tasks, as pure functions of outer and inner variables."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metapeft.learner.backbone_pass import BackbonePass
from metapeft.learner.derived import derive, generated_seeds, parted
from metapeft.learner.items import Items, Parts
from metapeft.learner.losses import batch_value, correct, task_losses
from metapeft.learner.roles import Roles, Tensors


@dataclass(eq=False)
class Objectives:
    """Inner and outer objective `(u, w, derived) -> (T,)` of a learner on a batch.

    `u` holds outer variables by name, those that are missing are the learner's own; `w` the inner variables;
    `derived` what `derive` made of `u` and the batch, less the entries `derived.<name>` of `u`; None: it is made anew.

    Args:
        passes: the backbone on the batch.
    """

    passes: BackbonePass

    @property
    def roles(self) -> Roles:
        """Whose objectives they are."""
        return self.passes.roles

    # --- what the engines call -----------------------------------------------------------------------------

    def inner(self, u: Tensors, w: Tensors, derived: Tensors | None) -> Tensor:
        """Mean loss over the support set, or over all items with `inner_data="both"`: `(T,)`."""
        part = "both" if self.passes.both else "support"
        roles, items = self.roles, self.passes.parts[part]
        given = roles.loss if roles.inner_loss is None else roles.inner_loss
        logits = self._logits(u, w, derived, part)
        return task_losses(given, roles.inner_row_loss, logits, items, self.passes.ways)

    def outer(self, u: Tensors, w: Tensors, derived: Tensors | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the query set, or over all items with `inner_data="both"`; the query's accuracy.

        A loss of the whole batch is the value of each task.
        """
        part = "both" if self.passes.both else "query"
        logits = self._logits(u, w, derived, part)
        whole, items = self.roles.batch_loss, self.passes.parts[part]
        loss = self._loss(logits, part) if whole is None else batch_value(whole, logits, items)
        query = self.passes.parts["query"]
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
        """The same tasks with other queries, already on the learner's device and in floats, outside training."""
        passes = self.passes
        return Objectives(
            BackbonePass(passes.roles, Parts(passes.parts.support, query), passes.ways, training=False)
        )

    def predict(self, w: Tensors, derived: Tensors) -> Tensor:
        """Logits of the query set, `(T, B, N)`; seeds per input are generated for it."""
        if self.roles.per_input and not any(name.startswith("query.") for name in derived):
            derived = {**derived, **generated_seeds(self.passes, {})}
        return self._logits({}, w, derived, "query")

    def factors(self, w: Tensors, derived: Tensors) -> dict[str, Tensor]:
        """The factors that a task ends with, selection applied: `(T or 1, ...)`; no seeds per input."""
        return self.passes.factors({}, w, derived, None)

    def head(self, w: Tensors, derived: Tensors) -> dict[str, Tensor]:
        """The head's tensors `(T, ...)`; empty for the backbone's own classifier."""
        own = self._of_head(w)
        if own or self.roles.head_name == "learned":
            return own
        passes = self.passes
        return self.roles.head_start(
            {}, passes.run({}, w, derived, "support"), passes.parts.support, passes.ways
        )

    # --- parts ---------------------------------------------------------------------------------------------

    def _of_head(self, w: Tensors) -> dict[str, Tensor]:
        return {name: value for name, value in w.items() if name not in self.roles.is_factor}

    def _loss(self, logits: Tensor, part: str) -> Tensor:
        return task_losses(
            self.roles.loss, self.roles.row_loss, logits, self.passes.parts[part], self.passes.ways
        )

    def _logits(self, u: Tensors, w: Tensors, derived: Tensors | None, part: str) -> Tensor:
        """Logits `(T, B, N)` of the items of `part`, by the head that the learner has; see `BackbonePass.runs`."""
        passes, roles = self.passes, self.roles
        if derived is None:
            made = derive(passes, u, keep=False).values
        else:
            u, made = parted(u, derived)
        passes.parts[part]  # or it is refused
        own, *apart = passes.runs[part]
        output = passes.run(u, w, made, own)
        count = passes.parts.support.count
        tensors = self._of_head(w)
        if not tensors and roles.head_name != "learned":
            features = passes.run(u, w, made, apart[0]) if apart else output[:, :count]
            tensors = roles.head_start(u, features, passes.parts.support, passes.ways)
        if own != part:
            output = output[:, count:]
        return roles.head.logits(output, {**roles.head_constants(), **tensors}) if tensors else output

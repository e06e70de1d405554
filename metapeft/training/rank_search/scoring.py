"""What each term of an update is worth to the loss: by the Fisher information of a gate on it, or by leaving it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.machine.precision import forward_precision
from metapeft.base.trees import mapped
from metapeft.learner.losses import row_loss
from metapeft.training.finetuning.row_losses import sums
from metapeft.training.finetuning.rows import Batch
from metapeft.updates.attached import AttachedModel, check_model
from metapeft.updates.copying import frozen, viewed
from metapeft.updates.factors import by_parameter, updates_of
from metapeft.updates.formats.scores import Scores
from metapeft.updates.formats.selection import costs

KINDS = ("fisher", "ablation")


def scores(
    model: AttachedModel,
    factors: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: Callable[..., Any] = F.cross_entropy,
    kind: str = "fisher",
    autocast: torch.dtype | None = None,
) -> Scores:
    """A score for every term of every update; of factors in `canonical` form, of every singular term.

    With a gate `g_j = 1` on term j and the loss `l_n` of example n,

    - `"fisher"`: `mean_n (d l_n / d g_j)^2`, the Fisher information of the gate where the loss is a negative log
      likelihood. It is a mean of squares of examples; the gradient of their mean is 0 at an optimum, whatever a term
      is worth. One forward and one backward for all terms.
    - `"ablation"`: `mean_n l_n(g_j = 0) - mean_n l_n`, the loss that is gained when term j is left out. A forward a
      term.

    Args:
        model: what `attach` returned. factors: one task's, `name -> (1, ...)`.
        batches: `(x, y)` each, leaves `(B, ...)`. loss: as `mp.finetune` takes it; an example's is the mean over its
            tokens. autocast: `torch.bfloat16` for forwards in that type.

    Raises:
        ValueError: an unknown kind, no batches, a model without terms.

    Example:
        >>> import metapeft as mp
        >>> model = mp.attach(torch.nn.Linear(4, 3), mp.LoRA(2))
        >>> factors = {name: torch.randn_like(value) for name, value in model.factors().items()}
        >>> found = scores(model, mp.canonical(model, factors), [(torch.randn(8, 4), torch.arange(8) % 3)])
        >>> found.values["weight"].shape, found.costs, found.examples
        (torch.Size([2]), {'weight': 7}, 8)
    """
    check_model(model)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: allowed are 'fisher' and 'ablation'")
    gated = Gated(model, factors, loss, autocast)
    values = {name: torch.zeros(terms, dtype=torch.float64) for name, terms in gated.terms.items()}
    examples = 0
    for batch in batches:
        one = batch if isinstance(batch, Batch) else Batch(*batch)
        found = gated.fisher(one) if kind == "fisher" else gated.ablation(one)
        for name, value in found.items():
            values[name] += value.double().cpu()
        examples += len(one)
    if not examples:
        raise ValueError("batches is empty: scores are means over examples")
    return Scores({name: value / examples for name, value in values.items()}, costs(model), kind, examples)


class Gated:
    """An update with a gate on each of its terms, on a backbone that has all else inside its weights.

    Attributes:
        terms: parameter -> number of terms.
    """

    def __init__(
        self,
        model: AttachedModel,
        factors: Mapping[str, Tensor],
        loss: Callable[..., Any],
        autocast: torch.dtype | None,
    ) -> None:
        own = {name: value.detach() for name, value in factors.items()}
        self.terms = {name: site.format.terms for name, site in model.sites.items() if site.format.terms}
        if not self.terms:
            raise ValueError("the model has no update with terms: attach LoRA, CP or TensorRing")
        updates = updates_of(model.sites, own, model.parameters, 1, 1)
        self.weights = {
            name: (model.parameters[name] + update.delta(1)[0]).detach()
            for name, update in updates.items()
            if name not in self.terms
        }
        self.model = viewed(frozen(model), sites={name: model.sites[name] for name in self.terms})
        local = by_parameter(model.sites, own)
        self.local = {name: local[name] for name in self.terms}
        self.loss, self.rows, self.autocast = loss, row_loss(loss), autocast

    def fisher(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over examples of squared gradients of the gates, `(terms,)`: each example is a task of its own."""
        like = next(iter(self.local.values()))["A"]
        gates = {
            name: like.new_ones(len(batch), terms).requires_grad_() for name, terms in self.terms.items()
        }
        x = mapped(batch.x, lambda value: value.unsqueeze(1))
        with torch.enable_grad():
            values, weights = self._losses(x, batch.y.unsqueeze(1), gates)
            total = (values / weights.clamp(min=1e-30)).sum()
            grads = torch.autograd.grad(total, list(gates.values()))
        return {name: grad.double().square().sum(0) for name, grad in zip(gates, grads)}

    @torch.no_grad()
    def ablation(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over examples of what the loss gains without a term, `(terms,)`: each term left out is a task."""
        x, y = mapped(batch.x, lambda value: value.unsqueeze(0)), batch.y.unsqueeze(0)
        before = self._example_losses(x, y, {})
        found = {}
        for name, terms in self.terms.items():
            like = self.local[name]["A"]
            without = 1.0 - torch.eye(terms, dtype=like.dtype, device=like.device)
            spread = mapped(x, lambda value, terms=terms: value.expand(terms, *value.shape[1:]))  # type: ignore[misc]
            after = self._example_losses(spread, y.expand(terms, *y.shape[1:]), {name: without})
            found[name] = (after - before).sum(1)
        return found

    @torch.no_grad()
    def losses(self, batch: Batch) -> Tensor:
        """The loss of every example, `(B,)`, with all gates at 1."""
        x = mapped(batch.x, lambda value: value.unsqueeze(0))
        return self._example_losses(x, batch.y.unsqueeze(0), {})[0]

    def _example_losses(self, x: Any, y: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
        values, weights = self._losses(x, y, gates)
        return torch.where(weights > 0, values / weights.clamp(min=1e-30), 0.0).view(y.shape[:2])

    def _losses(self, x: Any, y: Tensor, gates: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum of losses and weight of every row of x `(T, B, ...)`, `(T*B,)` both."""
        factors = {}
        for name, own in self.local.items():
            chosen = self.model.sites[name].format.select(own, gates[name]) if name in gates else own
            factors.update({f"{name}.{key}": value for key, value in chosen.items()})
        like = next(iter(factors.values()))
        floats = mapped(x, lambda value: value.to(like.dtype) if value.dtype == torch.float64 else value)
        with forward_precision(self.autocast, like):
            outputs = self.model(self.model.prepared(floats), factors, weights=self.weights)
        flat = y.flatten(0, 1).to(like.device)
        flat = flat.to(like.dtype) if flat.is_floating_point() else flat
        there = torch.ones(len(flat), dtype=torch.bool, device=like.device)
        return sums(self.rows, self.loss, outputs.to(like.dtype).flatten(0, 1), flat, there)

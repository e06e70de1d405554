"""An independent computation of what a learner does: a plain loop over tasks, on merged weights.

Nothing of it batches tasks, and nothing of it uses the library's objectives, engines or attached forward: an
update is added to W0 by its formula, the plain module runs through `functional_call`, the inner loop is SGD.
Who moves what comes from the arguments of the test, never from the learner, of which the values are read alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.learner.formulas import (
    ADAPTED_HEADS,
    FACTORS,
    LEARNED,
    Tensors,
    delta,
    head,
    logits,
    mapped,
    selected,
)
from tests.learner.networks import Features
from tests.learner.networks import Net as Net


@dataclass(frozen=True)
class Said:
    """What a test says of a learner, under the names of `Learner` and `attach`; `format=None` is no update."""

    format: Any = None
    targets: str = "all"
    norm: str = "running"
    inner: Any = None
    adapt: str | Sequence[str] = "all"
    hypergradient: Any = None
    outer: Sequence[str] = ("weights",)
    head: str = "learned"
    generator: Any = None
    selection: str | None = None
    inner_data: str = "support"
    loss: Callable[..., Tensor] = F.cross_entropy
    inner_loss: Callable[..., Tensor] | None = None
    seed: int = 0
    dropout: bool = False


class Plain:
    """One batch's outer value as a function of the outer variables, computed task by task.

    Args:
        values: the learner's variables, of which only the tensors are taken.
        net: the backbone, whose classifier is `classifier`. batch: episodes. said: who moves what.
    """

    def __init__(self, values: Mapping[str, Tensor], net: nn.Module, batch: Any, said: Said) -> None:
        self.values = {name: value.detach().clone() for name, value in values.items()}
        self.net, self.batch, self.said = net, batch, said
        self.own_classifier = said.head == "learned"
        kept = [
            n for n, _ in net.named_parameters() if self.own_classifier or not n.startswith("classifier.")
        ]
        self.kept = kept
        self.sites = [n for n in kept if said.format is not None and self._is_site(n)]
        self.factors = [f"{site}.{local}" for site in self.sites for local in FACTORS[type(said.format)]]
        patterns = (
            ["*"] if said.adapt == "all" else [said.adapt] if isinstance(said.adapt, str) else said.adapt
        )
        moved = [name for name in self.factors if any(fnmatchcase(name, pattern) for pattern in patterns)]
        self.adapted = [] if said.inner is None else moved
        self.moves_head = said.head in ADAPTED_HEADS and said.inner is not None
        self.seeds = [n for n in self.factors if n.endswith(".seed")] if said.generator is not None else []
        self.batch_statistics = said.inner is None and "weights" in said.outer and said.norm == "running"

    def _is_site(self, name: str) -> bool:
        full, of_head = FACTORS[type(self.said.format)] == ("delta",), name.startswith("classifier.")
        wanted = {"all": True, "head": of_head, "body": not of_head}
        inside = wanted.get(self.said.targets, fnmatchcase(name, self.said.targets))
        return inside and (full or self.net.get_parameter(name).ndim > 1)

    def trained(self) -> list[str]:
        """The names of all outer variables, by the groups that the test names."""
        layers = ["hidden", *self.seeds]
        moved = [*self.adapted, *(["head.weight", "head.bias"] if self.moves_head else [])]
        groups = {
            "weights": self.kept,
            "factors": self.factors,
            "generator": [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")],
            "selection": self.sites,
            "rates": moved,
            "head": LEARNED[self.said.head],
        }
        return [f"{group}.{name}" for group in self.said.outer for name in groups[group]]

    def get(self, u: Tensors, name: str) -> Tensor:
        return u.get(name, self.values[name])

    def part(self, u: Tensors, group: str) -> Tensors:
        """The variables of one group by their names in it."""
        own = [name for name in self.values if name.startswith(f"{group}.")]
        return {name.removeprefix(f"{group}."): self.get(u, name) for name in own}

    def run(
        self, u: Tensors, factors: Tensors, x: Tensor, reference: Tensor | None, features: bool = False
    ) -> Tensor:
        """The network (or its body) with one task's factors on `x`, normalised as the test says."""
        weights = {n: u.get(f"weights.{n}", value.detach()) for n, value in self.net.named_parameters()}
        for name in self.sites if factors else ():
            own = {key.rpartition(".")[2]: v for key, v in factors.items() if key.rpartition(".")[0] == name}
            weights[name] = weights[name] + delta(self.said.format, own)
        body = features or not self.own_classifier
        if self.said.norm == "support" and reference is not None:
            return self._support(weights, x, reference, body)
        buffers = {name: value.clone() for name, value in self.net.named_buffers()}
        module, prefix = (Features(self.net), "net.") if body else (self.net, "")
        module.train(self.said.norm == "transductive" or reference is None)
        return functional_call(module, {prefix + n: v for n, v in {**weights, **buffers}.items()}, (x,))

    def _support(self, weights: Tensors, x: Tensor, reference: Tensor, body: bool) -> Tensor:
        """The network by hand, its batch norm under the statistics of the support set."""
        seen, own = (
            F.conv2d(v, weights["conv.weight"], weights["conv.bias"], padding=1) for v in (reference, x)
        )
        mean = seen.mean((0, 2, 3))[:, None, None]
        deviation = ((seen - mean).square().mean((0, 2, 3)) + 1e-5).sqrt()[:, None, None]
        scale, shift = (weights[f"norm.{name}"][:, None, None] for name in ("weight", "bias"))
        maps = F.avg_pool2d(torch.tanh((own - mean) / deviation * scale + shift), 2).flatten(1)
        features = torch.tanh(F.linear(maps, weights["hidden.weight"], weights["hidden.bias"]))
        return (
            features if body else F.linear(features, weights["classifier.weight"], weights["classifier.bias"])
        )

    def value(self, u: Tensors) -> Tensor:
        """Mean outer value over tasks."""
        return torch.stack([Task(self, u, t).value() for t in range(len(self.batch))]).mean()

    def displacements(self) -> Tensors:
        """Reptile's gradient of the weights under full updates: how far these went, with a minus, mean over tasks."""
        found: dict[str, list[Tensor]] = {f"weights.{name}": [] for name in self.sites}
        for task in (Task(self, {}, t) for t in range(len(self.batch))):
            start, end = task.start(), task.adapted(self.said.inner_data)
            for name in self.sites:
                found[f"weights.{name}"].append((start[f"{name}.delta"] - end[f"{name}.delta"]).detach())
        return {name: torch.stack(moved).mean(0) for name, moved in found.items()}

    def predictions(self) -> Tensor:
        """Logits of the queries `(T, B, N)` after adapting, outside training."""
        self.batch_statistics = False
        with torch.no_grad():
            tasks = [Task(self, {}, t) for t in range(len(self.batch))]
            return torch.stack([task.scores(task.adapted(), task.query_x).detach() for task in tasks])


class Task:
    """One task of the batch, with outer variables `u`."""

    def __init__(self, plain: Plain, u: Tensors, t: int) -> None:
        batch = plain.batch
        self.plain, self.said, self.u, self.ways = plain, plain.said, u, batch.ways
        self.support_x, self.support_y = batch.support_x[t], batch.support_y[t]
        self.query_x, self.query_y = batch.query_x[t], batch.query_y[t]
        masks = (None if mask is None else mask[t] for mask in (batch.support_mask, batch.query_mask))
        self.support_mask, self.query_mask = masks
        self.reference = self.support_x if self.support_mask is None else self.support_x[self.support_mask]
        self.starts = {name: plain.get(u, f"factors.{name}")[0] for name in plain.factors}
        self.starts.update(self.generated())

    def generated(self) -> Tensors:
        """Seeds from the plain body's features, which are constants, under the current weights."""
        plain = self.plain
        if not plain.seeds:
            return {}
        with torch.no_grad():
            # of the support set alone, without updates and without dropout
            rows = Plain.run(plain, plain.values, {}, self.support_x, self.reference, features=True)
            mean = (rows if self.support_mask is None else rows[self.support_mask]).mean(0)
        return mapped(
            plain.part(self.u, "generator"), mean, {name: self.starts[name] for name in plain.seeds}
        )

    def composed(self, w: Tensors) -> Tensors:
        """The factors that the network gets: adapted ones, starts, generated seeds, weighed by the selection."""
        weights = self.plain.part(self.u, "selection") if self.said.selection is not None else {}
        found = {}
        for name, start in self.starts.items():
            site, _, local = name.rpartition(".")
            found[name] = selected(self.said.format, local, w.get(name, start), weights.get(site))
        return found

    def output(self, w: Tensors, x: Tensor) -> Tensor:
        if self.plain.batch_statistics:  # of support and query together
            both = torch.cat([self.support_x, self.query_x])
            rows = self.plain.run(self.u, self.composed(w), both, None)
            return rows[: len(self.support_x)] if x is self.support_x else rows[len(self.support_x) :]
        return self.plain.run(self.u, self.composed(w), x, self.reference)

    def head(self, w: Tensors) -> tuple[Tensor, Tensor]:
        """Weight and bias from the support set's features under the factors `w`."""
        own, features, y = self.plain.part(self.u, "head"), self.output(w, self.support_x), self.support_y
        if self.support_mask is not None:
            features, y = features[self.support_mask], y[self.support_mask]
        return head(self.said.head, own, features, y, self.ways)

    def scores(self, w: Tensors, x: Tensor) -> Tensor:
        found = self.output(w, x)
        if self.said.head == "learned":
            return found
        weight, bias = (w["head.weight"], w["head.bias"]) if self.plain.moves_head else self.head(w)
        return logits(self.said.head, found, weight, bias)

    def loss(self, output: Tensor, y: Tensor, mask: Tensor | None, inner: bool) -> Tensor:
        loss = self.said.inner_loss if inner and self.said.inner_loss is not None else self.said.loss
        losses = loss(output, y, reduction="none")
        losses = losses.reshape(len(losses), -1).mean(1)
        return losses.mean() if mask is None else losses[mask].mean()

    def objective(self, w: Tensors, data: str, inner: bool = False) -> Tensor:
        support = self.support_x, self.support_y, self.support_mask
        query = self.query_x, self.query_y, self.query_mask
        parts = {"support": [support], "query": [query], "both": [support, query]}[data]
        masks = [torch.ones(len(y), dtype=torch.bool) if mask is None else mask for _, y, mask in parts]
        rows, y = torch.cat([self.scores(w, x) for x, _, _ in parts]), torch.cat([y for _, y, _ in parts])
        return self.loss(rows, y, torch.cat(masks), inner)

    def value(self) -> Tensor:
        both = self.said.inner_data == "both"
        return self.objective(self.adapted(self.said.inner_data), "both" if both else "query")

    def start(self) -> Tensors:
        w = {name: self.starts[name] for name in self.plain.adapted}
        if self.plain.moves_head:
            w["head.weight"], w["head.bias"] = self.head({})
        return w

    @torch.enable_grad()
    def adapted(self, data: str = "support") -> Tensors:
        """SGD with the learner's rates, its gradients partial in w; as the engine says, constants or not."""
        w, inner = self.start(), self.said.inner
        start = w
        unrolled = self.said.hypergradient in (None, "unroll")
        envelope = self.said.hypergradient == "envelope"
        for k in range(0 if inner is None else inner.steps):
            if envelope:
                w = {name: value.detach() for name, value in w.items()}
            at = {name: (v if v.requires_grad else v.detach().requires_grad_()) * 1 for name, v in w.items()}
            if not unrolled:
                at = {name: value.detach().requires_grad_() for name, value in at.items()}
            found = torch.autograd.grad(
                self.objective(at, data, inner=True), list(at.values()), create_graph=unrolled, allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
            base = at if unrolled else w
            pull = {name: inner.proximal * (base[name] - start[name]) for name in w}
            w = {n: base[n] - self.rate(n, k) * (grad + pull[n]) for n, grad in zip(w, found)}
        return {name: value.detach() for name, value in w.items()} if envelope else w

    def rate(self, name: str, k: int) -> Any:
        if self.said.inner.rates_per is None:
            return self.said.inner.lr
        value = self.plain.get(self.u, f"rates.{name}")[k]
        return value if value.ndim == 0 else value[0]  # the task axis of the start


def plain_gradients(
    values: Mapping[str, Tensor], net: nn.Module, batch: Any, kind: type[Plain] = Plain, **said: Any
) -> tuple[Tensor, Tensors]:
    """The outer value and its gradient for everything that is trained: by name, as the test says it.

    Args:
        values: the learner's variables. net: the backbone. batch: episodes. said: see `Said`.
    """
    plain = kind(values, net, batch, Said(**said))
    u = {name: plain.values[name].clone().requires_grad_() for name in plain.trained()}
    if plain.said.hypergradient == "reptile":
        return plain.value({}), plain.displacements()
    value = plain.value(u)
    if not u:
        return value.detach(), {}
    found = torch.autograd.grad(value, list(u.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(u, found))

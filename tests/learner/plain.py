"""An independent computation of what a learner does: a plain loop over tasks, on merged weights.

Nothing of it batches tasks, and nothing of it uses the library's objectives, engines or attached forward: an
update is added to W0 by its formula, the plain module runs through `functional_call`, the inner loop is SGD.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metapeft.learner.learner import Learner

Tensors = dict[str, Tensor]


class Net(nn.Module):
    """A convolution, a batch norm and a classifier; activations are smooth, so that all derivatives exist."""

    def __init__(self, ways: int = 3, norm: bool = True, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, 3, 3, padding=1)
            self.norm: nn.Module = nn.BatchNorm2d(3) if norm else nn.Identity()
            self.hidden = nn.Linear(3 * 4, 5)
            self.classifier = nn.Linear(5, ways)
            if norm:
                self.norm.running_mean.normal_()
                self.norm.running_var.uniform_(0.5, 2.0)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.norm(self.conv(x))), 2)
        return torch.tanh(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Features(nn.Module):
    """The same network up to its classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.features(x)


def delta(learner: Learner, name: str, factors: Tensors) -> Tensor:
    """The update of one parameter from its factors without task axis, by the formulas of the design."""
    own = {key.rpartition(".")[2]: value for key, value in factors.items() if key.rpartition(".")[0] == name}
    kind = type(learner.model.sites[name].format).__name__
    if kind == "Full":
        return own["delta"]
    if kind == "LoRA":
        return torch.einsum("or,ri...->oi...", own["B"], own["A"])
    if kind == "CP":
        return torch.einsum("or,r,ri...->oi...", own["B"], own["seed"], own["A"])
    rank = own["seed"].shape[0]
    scale = learner.model.sites[name].format.scale
    assert own["seed"].shape == (rank, rank)
    return scale * torch.einsum("ai...b,boc,ca->oi...", own["A"], own["B"], own["seed"])


def selected(learner: Learner, name: str, local: str, value: Tensor, logits: Tensor | None) -> Tensor:
    """A factor under the softmax of its layer's logits: LoRA's rows of A, CP's seed, the ring's bond r1."""
    if logits is None:
        return value
    weights, kind = logits.softmax(0), type(learner.model.sites[name].format).__name__
    if kind == "LoRA" and local == "A":
        return value * weights.reshape(-1, *[1] * (value.ndim - 1))
    if kind == "CP" and local == "seed":
        return value * weights
    if kind == "TensorRing" and local == "A":
        return value * weights
    return value


class Plain:
    """One batch's outer value as a function of the outer variables, computed task by task."""

    def __init__(self, learner: Learner, net: nn.Module, batch: Any) -> None:
        self.learner, self.net, self.batch = learner, net, batch
        self.module = net if learner.head_name == "learned" else Features(net)
        self.prefix = "" if learner.head_name == "learned" else "net."

    def run(self, u: Tensors, factors: Tensors, x: Tensor, reference: Tensor | None) -> Tensor:
        """The network (or its body) with one task's factors on `x`, normalised as the learner says."""
        weights = {}
        for name, value in self.net.named_parameters():
            weights[name] = u.get(f"weights.{name}", value.detach())
        for name in self.learner.model.sites:
            weights[name] = weights[name] + delta(self.learner, name, factors)
        buffers = {name: value.clone() for name, value in self.net.named_buffers()}
        if self.learner.model.norm == "support" and reference is not None:
            return self._support(weights, x, reference)
        values = {self.prefix + name: value for name, value in {**weights, **buffers}.items()}
        module = self.module.train(self.learner.model.norm == "transductive" or reference is None)
        return functional_call(module, values, (x,))

    def _support(self, weights: Tensors, x: Tensor, reference: Tensor) -> Tensor:
        """The network by hand, its batch norm under the statistics of the support set."""
        seen, own = (
            F.conv2d(v, weights["conv.weight"], weights["conv.bias"], padding=1) for v in (reference, x)
        )
        mean = seen.mean((0, 2, 3))[:, None, None]
        deviation = ((seen - mean).square().mean((0, 2, 3)) + 1e-5).sqrt()[:, None, None]
        scale, shift = (weights[f"norm.{name}"][:, None, None] for name in ("weight", "bias"))
        maps = F.avg_pool2d(torch.tanh((own - mean) / deviation * scale + shift), 2).flatten(1)
        features = torch.tanh(F.linear(maps, weights["hidden.weight"], weights["hidden.bias"]))
        if self.prefix:
            return features
        return F.linear(features, weights["classifier.weight"], weights["classifier.bias"])

    def value(self, u: Tensors) -> Tensor:
        """Mean outer value over tasks."""
        values = [self.task(u, t) for t in range(len(self.batch))]
        return torch.stack(values).mean()

    def get(self, u: Tensors, name: str) -> Tensor:
        return u.get(name, self.learner.variables[name].detach())

    def mean(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return losses.mean() if mask is None else losses[mask].mean()

    def loss(self, output: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        found = self.learner.loss(output, y, reduction="none")
        return self.mean(found.reshape(found.shape[0], -1).mean(1), mask)

    def task(self, u: Tensors, t: int) -> Tensor:
        learner, batch = self.learner, self.batch
        support_x, support_y = batch.support_x[t], batch.support_y[t]
        query_x, query_y = batch.query_x[t], batch.query_y[t]
        s_mask = None if batch.support_mask is None else batch.support_mask[t]
        q_mask = None if batch.query_mask is None else batch.query_mask[t]
        names = learner.factor_names
        starts = {name: self.get(u, f"factors.{name}")[0] for name in names}
        starts.update(self.seeds(u, support_x, s_mask, starts))
        logits = {n: self.get(u, f"selection.{n}") for n in learner.selected}

        def compose(w: Tensors) -> Tensors:
            found = {name: w.get(name, starts[name]) for name in names}
            result = {}
            for name, value in found.items():
                parameter, _, local = name.rpartition(".")
                result[name] = selected(learner, parameter, local, value, logits.get(parameter))
            return result

        reference = support_x if s_mask is None else support_x[s_mask]

        def output(w: Tensors, x: Tensor) -> Tensor:
            if learner.trains_on_batch_statistics:  # of support and query together
                rows = self.run(u, compose(w), torch.cat([support_x, query_x]), None)
                return rows[: len(support_x)] if x is support_x else rows[len(support_x) :]
            return self.run(u, compose(w), x, reference)

        def head(features: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(u, features, support_y, s_mask, batch.ways)

        w: Tensors = {name: starts[name] for name in learner.adapted}
        if learner.head.inner:
            w["head.weight"], w["head.bias"] = head(output({}, support_x))

        def scores(w: Tensors, x: Tensor) -> Tensor:
            found = output(w, x)
            if learner.head_name == "learned":
                return found
            weight, bias = (
                (w["head.weight"], w["head.bias"]) if learner.head.inner else head(output(w, support_x))
            )
            return found @ weight.T + bias

        def objective(w: Tensors, both: bool, query: bool) -> Tensor:
            if both:
                masks = [
                    torch.ones(len(y), dtype=torch.bool) if m is None else m
                    for y, m in ((support_y, s_mask), (query_y, q_mask))
                ]
                rows = torch.cat([scores(w, support_x), scores(w, query_x)])
                return self.loss(rows, torch.cat([support_y, query_y]), torch.cat(masks))
            if query:
                return self.loss(scores(w, query_x), query_y, q_mask)
            return self.loss(scores(w, support_x), support_y, s_mask)

        both = learner.inner_data == "both"
        w = self.adapt(u, w, lambda w: objective(w, both, False))
        return objective(w, both, True)

    def adapt(self, u: Tensors, w: Tensors, objective: Any) -> Tensors:
        """SGD with the learner's rates, its gradients partial in w; as the engine says, constants or not."""
        learner = self.learner
        if learner.inner is None:
            return w
        method = learner.method
        if method == "envelope":
            w = {name: value.detach() for name, value in w.items()}
        for k in range(learner.inner.steps):
            at = {name: (v if v.requires_grad else v.detach().requires_grad_()) * 1 for name, v in w.items()}
            keep = method == "unroll"
            if not keep:
                at = {name: value.detach().requires_grad_() for name, value in at.items()}
            found = torch.autograd.grad(
                objective(at), list(at.values()), create_graph=keep, allow_unused=True, materialize_grads=True
            )
            base = at if keep else w
            w = {name: base[name] - self.rate(u, name, k) * grad for name, grad in zip(w, found)}
            if method == "envelope":
                w = {name: value.detach() for name, value in w.items()}
        return w

    def rate(self, u: Tensors, name: str, k: int) -> Any:
        rates = self.learner.variables.get(f"rates.{name}")
        if rates is None:
            return self.learner.inner.lr
        value = self.get(u, f"rates.{name}")[k]
        if value.ndim == 0:
            return value
        return value[0]  # the task axis of the start

    def head(
        self, u: Tensors, features: Tensor, y: Tensor, mask: Tensor | None, ways: int
    ) -> tuple[Tensor, Tensor]:
        """Weight `(N, F)` and bias `(N,)` of one task, by the formulas of the papers."""
        kind = self.learner.head_name
        keep = torch.ones(len(y), dtype=torch.bool) if mask is None else mask
        features, y = features[keep], y[keep]
        absent = torch.tensor([0.0 if (y == n).any() else -1e9 for n in range(ways)], dtype=features.dtype)
        if kind == "zero":
            return features.new_zeros(ways, features.shape[1]), absent
        if kind in ("prototype-init", "prototypes"):
            centres = torch.stack(
                [
                    features[y == n].mean(0) if (y == n).any() else features.new_zeros(features.shape[1])
                    for n in range(ways)
                ]
            )
            scale = self.get(u, "head.log_scale").exp()
            return 2 * scale * centres, -scale * centres.square().sum(1) + absent
        penalty, scale = self.get(u, "head.log_penalty").exp(), self.get(u, "head.log_scale").exp()
        rows = F.one_hot(y, ways).to(features)
        gram = features @ features.T + penalty * torch.eye(len(y), dtype=features.dtype)
        weight = (features.T @ torch.linalg.inv(gram) @ rows).T * scale
        return weight, absent + self.get(u, "head.bias")

    def seeds(self, u: Tensors, support_x: Tensor, mask: Tensor | None, starts: Tensors) -> Tensors:
        """Generated seeds of one task, from the plain body with constant features."""
        learner = self.learner
        if learner.generator is None:
            return {}
        with torch.no_grad():
            body = Plain.__new__(Plain)
            body.learner, body.net, body.batch = learner, self.net, self.batch
            body.module, body.prefix = Features(self.net), "net."
            none = {n: torch.zeros_like(v) for n, v in starts.items()}
            reference = support_x if mask is None else support_x[mask]
            weights = {n: v for n, v in learner.variables.items() if n.startswith("weights.")}
            features = body.run(weights, none, support_x, reference)
            z = features.mean(0) if mask is None else features[mask].mean(0)
            z = F.layer_norm(z, z.shape)
        g = {n: self.get(u, f"generator.{n}") for n in learner.generator_names}
        hidden = F.relu(g["hidden.weight"] @ z + g["hidden.bias"])
        return {
            name: starts[name] + (g[f"{name}.weight"] @ hidden + g[f"{name}.bias"]).reshape(shape)
            for name, shape in learner.seeds.items()
        }


def plain_gradients(learner: Learner, net: nn.Module, batch: Any) -> tuple[Tensor, Tensors]:
    """The outer value and its gradient for everything that the learner trains."""
    u = {name: value.detach().clone().requires_grad_() for name, value in learner.trained.items()}
    value = Plain(learner, net, batch).value(u)
    found = torch.autograd.grad(value, list(u.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(u, found))

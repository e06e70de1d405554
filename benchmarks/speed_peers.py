"""The same meta-step by every library: each function returns the mean gradient by the plain module's names."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

import metapeft as mp
from benchmarks import speed_implicit
from benchmarks.peer_imports import import_learn2learn
from benchmarks.speed_problems import RATE, Plain, Workload

Step = Callable[[], dict[str, Tensor]]


def loop(workload: Workload, plain: Plain, batch: mp.EpisodeBatch) -> Step:
    """A loop over tasks of `torch.func.functional_call` and `torch.autograd.grad`."""
    if workload.engine == "cg":
        return speed_implicit.looped(workload, plain, batch)
    parameters: dict[str, Tensor] = dict(plain.net.named_parameters())
    outer, graph = plain.outer, workload.engine != "first-order"

    def step() -> dict[str, Tensor]:
        total = [torch.zeros_like(parameters[name]) for name in outer]
        for t in range(workload.tasks):
            w = {name: parameters[name] for name in plain.inner}
            for _ in range(workload.steps):
                loss = F.cross_entropy(
                    functional_call(plain.net, w, (batch.support_x[t],)), batch.support_y[t]
                )
                found = torch.autograd.grad(loss, list(w.values()), create_graph=graph)
                w = {name: value - RATE * grad for (name, value), grad in zip(w.items(), found)}
            loss = F.cross_entropy(functional_call(plain.net, w, (batch.query_x[t],)), batch.query_y[t])
            for sum_, grad in zip(total, torch.autograd.grad(loss, [parameters[name] for name in outer])):
                sum_ += grad / workload.tasks
        return dict(zip(outer, total))

    return step


def vmapped(workload: Workload, plain: Plain, batch: mp.EpisodeBatch) -> Step:
    """`torch.func.vmap` over tasks of an inner loop of `torch.func.grad`."""
    if workload.engine == "cg":
        return speed_implicit.vmapped(workload, plain, batch)
    by_hand(plain.net)
    parameters: dict[str, Tensor] = dict(plain.net.named_parameters())
    outer = plain.outer

    def of_task(p: dict[str, Tensor], sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        def loss(w: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(plain.net, {**p, **w}, (x,)), y)

        w = {name: p[name] for name in plain.inner}
        for _ in range(workload.steps):
            found = torch.func.grad(loss)(w, sx, sy)
            if workload.engine == "first-order":
                found = {name: grad.detach() for name, grad in found.items()}
            w = {name: value - RATE * found[name] for name, value in w.items()}
        return loss(w, qx, qy)

    def step() -> dict[str, Tensor]:
        data = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
        each = vmap(of_task, in_dims=(None, 0, 0, 0, 0))(parameters, *data)
        return dict(zip(outer, torch.autograd.grad(each.mean(), [parameters[name] for name in outer])))

    return step


class ByHand(nn.Module):
    """Batch norm of the batch's own statistics in plain operations.

    `torch.func.vmap` gets their second derivative right, that of torch's own batch norm to three digits only.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale.view(-1, 1, 1) + (self.bias - mean * scale).view(-1, 1, 1)


def by_hand(net: nn.Module) -> None:
    """Put `ByHand` in the place of every batch norm that has no running statistics."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not module.track_running_stats:
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, ByHand(module))


def higher(workload: Workload, plain: Plain, batch: mp.EpisodeBatch) -> Step:
    """`higher.innerloop_ctx`, a backward a task. It differentiates every parameter that requires a gradient.

    First-order, it tracks no steps, and what the query loss gives at the adapted point is taken.
    """
    import higher

    parameters = dict(plain.net.named_parameters())
    optimizer = torch.optim.SGD([parameters[name] for name in plain.inner], RATE)

    def first_order() -> dict[str, Tensor]:
        total = [torch.zeros_like(parameters[name]) for name in plain.outer]
        for t in range(workload.tasks):
            with higher.innerloop_ctx(plain.net, optimizer, track_higher_grads=False) as (net, inner):
                for _ in range(workload.steps):
                    inner.step(F.cross_entropy(net(batch.support_x[t]), batch.support_y[t]))
                loss = F.cross_entropy(net(batch.query_x[t]), batch.query_y[t])
                fast = dict(zip(parameters, net.parameters()))
                for sum_, grad in zip(total, torch.autograd.grad(loss, [fast[name] for name in plain.outer])):
                    sum_ += grad / workload.tasks
        return dict(zip(plain.outer, total))

    if workload.engine == "first-order":
        return first_order

    def step() -> dict[str, Tensor]:
        plain.net.zero_grad(set_to_none=True)
        for t in range(workload.tasks):
            with higher.innerloop_ctx(plain.net, optimizer, copy_initial_weights=False) as (net, inner):
                for _ in range(workload.steps):
                    inner.step(F.cross_entropy(net(batch.support_x[t]), batch.support_y[t]))
                (F.cross_entropy(net(batch.query_x[t]), batch.query_y[t]) / workload.tasks).backward()  # type: ignore[no-untyped-call]
        return _taken(plain)

    return step


def learn2learn(workload: Workload, plain: Plain, batch: mp.EpisodeBatch) -> Step:
    """`clone_module`, `update_module`: what its MAML does, first-order or not, for the inner variables alone."""
    from learn2learn.utils import clone_module, update_module

    graph = workload.engine != "first-order"

    def step() -> dict[str, Tensor]:
        plain.net.zero_grad(set_to_none=True)
        for t in range(workload.tasks):
            net = clone_module(plain.net)
            for _ in range(workload.steps):
                own = dict(net.named_parameters())
                loss = F.cross_entropy(net(batch.support_x[t]), batch.support_y[t])
                found = torch.autograd.grad(loss, [own[name] for name in plain.inner], create_graph=graph)
                moved = {name: -RATE * grad for name, grad in zip(plain.inner, found)}
                net = update_module(net, updates=[moved.get(name) for name in own])
            (F.cross_entropy(net(batch.query_x[t]), batch.query_y[t]) / workload.tasks).backward()  # type: ignore[no-untyped-call]
        return _taken(plain)

    return step


def torchopt(workload: Workload, plain: Plain, batch: mp.EpisodeBatch) -> Step:
    """`torchopt.MetaSGD` on the modules that hold the inner variables; implicitly its `ImplicitMetaGradientModule`."""
    import torchopt

    if workload.engine == "cg":
        return speed_implicit.with_torchopt(workload, plain, batch)
    holders = dict.fromkeys(name.rpartition(".")[0] for name in plain.inner)
    moving = nn.ModuleList([plain.net.get_submodule(name) for name in holders])

    def step() -> dict[str, Tensor]:
        plain.net.zero_grad(set_to_none=True)
        begin = torchopt.extract_state_dict(plain.net, by="reference")
        leaves = dict(plain.net.named_parameters())
        for t in range(workload.tasks):
            inner = torchopt.MetaSGD(moving, lr=RATE)
            for _ in range(workload.steps):
                inner.step(F.cross_entropy(plain.net(batch.support_x[t]), batch.support_y[t]))
            (F.cross_entropy(plain.net(batch.query_x[t]), batch.query_y[t]) / workload.tasks).backward()  # type: ignore[no-untyped-call]
            torchopt.recover_state_dict(plain.net, begin)
        return {name: leaves[name].grad.clone() for name in plain.outer}  # type: ignore[union-attr]

    return step


def _taken(plain: Plain) -> dict[str, Tensor]:
    parameters = dict(plain.net.named_parameters())
    return {name: parameters[name].grad.clone() for name in plain.outer}  # type: ignore[union-attr]


#: name -> what makes the step, the engines that it has; the loops stand against `recompute` with the steps unrolled
PEERS: dict[str, tuple[Callable[[Workload, Plain, mp.EpisodeBatch], Step], tuple[str, ...]]] = {
    "loop": (loop, ("unroll", "recompute", "first-order", "cg")),
    "vmap": (vmapped, ("unroll", "recompute", "first-order", "cg")),
    "higher": (higher, ("unroll", "first-order")),
    "learn2learn": (learn2learn, ("unroll", "first-order")),
    "torchopt": (torchopt, ("unroll", "cg")),
}
#: engine -> who has no such gradient, for the rows that say so
LACKS = {
    "cg": {"higher": "no implicit gradients", "learn2learn": "no implicit gradients"},
    "first-order": {"torchopt": "its differentiable optimisers are of second order"},
    "recompute": dict.fromkeys(("higher", "learn2learn", "torchopt"), "keeps the graph of all steps"),
}


def absent(name: str) -> str | None:
    """Why a peer cannot run here; None where it can."""
    if name in ("loop", "vmap"):
        return None
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed (requirements-peers.txt)"
    try:
        import_learn2learn() if name == "learn2learn" else importlib.import_module(name)
    except Exception as error:  # of any kind: its own dependencies may be too old or too new
        return f"{name}: {error}"
    return None


def metapeft(learner: mp.Learner, batch: mp.EpisodeBatch) -> Callable[[], dict[str, Any]]:
    """metapeft's own step, by its names."""
    return lambda: dict(learner.hypergradient(batch).grads)

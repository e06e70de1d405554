"""What autograd keeps alive at once: linear in K for unroll, flat for the engines that say so."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from torch import nn

from metapeft.hypergradients import CG, NotConverged, Recompute, Truncated, hypergradient, recompute
from metapeft.inner import SGD, solve


class Ledger:
    """Counts the bytes that the graph holds, and their peak."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, tensor):
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        box = Box(tensor)
        weakref.finalize(box, self.release, size)
        return box

    def release(self, size):
        self.now -= size


class Box:
    def __init__(self, tensor):
        self.tensor = tensor


def peak(method, steps):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 16, generator=g), torch.randn(64, 16, generator=g)
    u = {"shift": torch.zeros(16)}
    start = {name: torch.randn(16, 16, generator=g) / 4 for name in ("first", "second")}

    def loss(u, w):
        return (torch.tanh((x + u["shift"]) @ w["first"]) @ w["second"] - y).square().mean()

    ledger = Ledger()
    with (
        torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda box: box.tensor),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", NotConverged)
        hypergradient(loss, loss, u, start, SGD(steps, 0.01), method)
    return ledger.peak


@pytest.mark.parametrize(
    "method", ["first-order", "envelope", "recompute", "neumann", CG(3, damping=1.0), Truncated(1)], ids=repr
)
def test_the_graph_does_not_grow_with_the_number_of_steps(method):
    assert peak(method, 40) <= 1.2 * peak(method, 1)


def test_unroll_grows_linearly():
    one, many = peak("unroll", 1), peak("unroll", 40)
    assert 20 * one < many < 60 * one


def test_recompute_keeps_fewer_iterates_with_checkpoints(monkeypatch):
    """Iterates are no graph, so they are counted by hand: rows that are kept and what is alive beside, at K = 100."""
    made, rooms = [], []

    class CountedRoom(recompute.Room):
        def __init__(self, like, count):
            super().__init__(like, count)
            rooms.append(count)

    monkeypatch.setattr(recompute, "Room", CountedRoom)

    class Counting(SGD):
        def step(self, k, u, w, grads, state):
            after, state = super().step(k, u, w, grads, state)
            made.append(weakref.ref(after["x"]))
            alive.append(sum(ref() is not None for ref in made))
            return after, state

    counts = {}
    for every in (1, "sqrt"):
        made.clear()
        rooms.clear()
        alive: list[int] = []
        start = {"x": torch.zeros(3)}
        half = lambda u, w: (w["x"] - u["c"]).square().sum() / 2  # noqa: E731
        hypergradient(half, half, {"c": torch.ones(3)}, start, Counting(100, 0.1), Recompute(every))
        of_iterates, of_values = rooms
        assert of_values == 100
        counts[every] = max(alive) + of_iterates
    assert counts[1] >= 100
    assert counts["sqrt"] <= 30  # 2 ceil(sqrt(K)), and what is in hand


@pytest.mark.parametrize("method", ["unroll", "recompute", CG(5, damping=1.0)], ids=repr)
def test_attention_and_layer_norm_have_second_derivatives(method):
    """The fused kernels of attention have none; the engine picks the one that does."""
    g = torch.Generator().manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    weights = {name: torch.randn(p.shape, generator=g) / 3 for name, p in layer.named_parameters()}
    x, y = torch.randn(2, 3, 8, generator=g), torch.randn(2, 3, 8, generator=g)

    def problem(dtype):
        module = layer.to(dtype)
        fixed = {name: value.to(dtype) for name, value in weights.items()}
        adapted = {"self_attn.in_proj_weight": fixed["self_attn.in_proj_weight"]}

        def loss(u, w):
            out = torch.func.functional_call(module, {**fixed, **w}, (x.to(dtype) * u["scale"],))
            return (out - y.to(dtype)).square().mean()

        return loss, adapted

    loss, start = problem(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        found = hypergradient(loss, loss, {"scale": torch.tensor(1.1)}, start, SGD(2, 0.5), method)
    assert found.grads["scale"].isfinite()
    if isinstance(method, CG):
        return
    loss, start = problem(torch.float64)

    def value(scale):
        u = {"scale": torch.tensor(scale, dtype=torch.float64)}
        return loss(u, solve(loss, u, start, SGD(2, 0.5))).item()

    slope = (value(1.1 + 1e-5) - value(1.1 - 1e-5)) / 2e-5
    assert found.grads["scale"].item() == pytest.approx(slope, rel=1e-3)  # float32 against float64

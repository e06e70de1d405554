"""higher's own cases: its sweep of optimisers over three small models, followed and differentiated.

Source: facebookresearch/higher, tests/test_optim.py (`testDiffOptCorrectness`, `testGradientCorrectness`), whose
gradient test asks for 0.1 in 6 of 10 trials in float32; here everything is in float64, and the same to rounding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import metapeft as mp
from metapeft.inner.solver import Solver
from tests.conftest import import_peer

pytestmark = pytest.mark.peers
LR, STEPS = 0.1, 3


@pytest.fixture(scope="module")
def higher() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source compares with `is`
        return import_peer("higher")


class Nested(nn.Module):
    """A layer that is used twice, through two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.e1 = nn.Sequential(nn.Linear(4, 2))
        self.e2 = nn.Sequential(self.e1[0])

    def forward(self, x: Tensor) -> Any:
        return self.e1(x) + self.e2(x)


class PartlyUsed(nn.Module):
    """Of two parameters the forward reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.rand(4, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a


def simple() -> nn.Module:
    last = nn.Linear(3, 4, bias=False)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), last, nn.Sigmoid(), nn.Linear(4, 2))


MODELS: dict[str, Callable[[], nn.Module]] = {"simple": simple, "shared": Nested, "partly used": PartlyUsed}
# of its sweep, those that it makes differentiable itself; AdamW it refuses
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.1}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.1, "nesterov": True}),
    "decay": (torch.optim.SGD, {"weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {}),
    "adam, decay": (torch.optim.Adam, {"weight_decay": 0.1}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adadelta, decay": (torch.optim.Adadelta, {"weight_decay": 0.1}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adagrad, decay": (torch.optim.Adagrad, {"weight_decay": 0.1}),
    "adagrad, slower": (torch.optim.Adagrad, {"lr_decay": 0.1}),
    "adamax": (torch.optim.Adamax, {}),
    "adamax, decay": (torch.optim.Adamax, {"weight_decay": 0.1}),
    "asgd": (torch.optim.ASGD, {}),
    "asgd, decay": (torch.optim.ASGD, {"weight_decay": 0.1}),
}
# solvers of our own that are the same optimisers, eps aside, which higher has elsewhere in Adam
OWN: dict[str, Callable[[], Solver]] = {
    "sgd": lambda: mp.inner.SGD(STEPS, LR),
    "momentum": lambda: mp.inner.Momentum(STEPS, LR, momentum=0.1),
    "nesterov": lambda: mp.inner.Nesterov(STEPS, LR, momentum=0.1),
    "decay": lambda: mp.inner.SGD(STEPS, LR, weight_decay=0.1),
}


@pytest.mark.parametrize("model", MODELS)
def test_its_sweep(higher: ModuleType, model: str) -> None:
    """Three steps on `sum y^2` of ten random inputs each, then that of ten others, and its gradient in the start."""
    torch.manual_seed(0)
    net = MODELS[model]().double()
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    batches = [torch.rand(10, 4).double() for _ in range(STEPS + 1)]

    def loss(u: Any, w: Any, x: Tensor) -> Any:  # a call leaves plain tensors in a module of two owners
        return functional_call(copy.deepcopy(net), w, (x,)).square().sum()

    for name, (optimizer, options) in OPTIMIZERS.items():
        fresh = optimizer(net.parameters(), lr=LR, **options)
        with higher.innerloop_ctx(net, fresh) as (fast, steps):
            for x in batches[:-1]:
                steps.step(fast(x).square().sum())
            value = fast(batches[-1]).square().sum()
            first = dict(zip(start, fast.parameters(time=0)))
            expected = dict(zip(start, torch.autograd.grad(value, list(first.values()), allow_unused=True)))
        solvers = [mp.inner.Higher(optimizer, STEPS, lr=LR, **options)]
        if name in OWN:
            solvers.append(OWN[name]())
        read = {n for n, grad in expected.items() if grad is not None}
        for solver in solvers:
            unread = {n: v for n, v in start.items() if n not in read}
            found = mp.hypergradient(
                loss, loss, {n: start[n] for n in read}, lambda u, unread=unread: {**u, **unread}, solver,
                data=(batches[:-1], batches[-1]),
            )  # fmt: skip
            torch.testing.assert_close(found.value, value.detach(), rtol=1e-10, atol=1e-12, msg=name)
            for n in read:
                torch.testing.assert_close(
                    found.grads[n], expected[n], rtol=1e-8, atol=1e-10, msg=f"{name}: {n}"
                )
        followed = MODELS[model]().double()
        followed.load_state_dict(net.state_dict())
        plain = optimizer(followed.parameters(), lr=LR, **options)
        for x in batches[:-1]:
            plain.zero_grad()
            followed(x).square().sum().backward()
            plain.step()
        for n, parameter in followed.named_parameters():
            if n in read:  # torch's leaves alone what has no gradient, and so do we by what is in w
                away = 1e-3 if "adam" in name else 1e-7  # it adds eps below the root, 1e-4 of it
                torch.testing.assert_close(found.w[n], parameter.detach(), rtol=1e-5, atol=away)


def test_learned_settings_of_adam(higher: ModuleType) -> None:
    """Its `testDiffOptGroupedParamLearn`: a gradient in a learned rate, here against a difference quotient too."""
    torch.manual_seed(1)
    net = simple().double()
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    batches = [torch.rand(10, 4).double() for _ in range(STEPS)]
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    with higher.innerloop_ctx(net, optimizer, override={"lr": [rate]}) as (fast, steps):
        for x in batches:
            steps.step(fast(x).square().sum())
        total = sum(p.sum() for p in fast.parameters())
        (expected,) = torch.autograd.grad(total, rate)

    def loss(u: Any, w: Any, x: Tensor) -> Any:
        return functional_call(net, w, (x,)).square().sum()

    def summed(u: Any, w: Any, _: Any) -> Tensor:
        return torch.stack([value.sum() for value in w.values()]).sum()

    solver = mp.inner.Higher(torch.optim.Adam, STEPS, lr=lambda u: u["rate"])
    u = {"rate": rate.detach()}
    found = mp.hypergradient(summed, loss, u, start, solver, data=(batches, None))
    torch.testing.assert_close(found.grads["rate"], expected, rtol=1e-10, atol=0)
    ends = [mp.inner.solve(loss, {"rate": u["rate"] + h}, start, solver, batches) for h in (1e-6, -1e-6)]
    up, down = (float(summed({}, w, None)) for w in ends)
    assert found.grads["rate"].item() == pytest.approx((up - down) / 2e-6, rel=1e-6)

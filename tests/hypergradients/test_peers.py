"""The same problems in TorchOpt, JAX, jaxopt and higher: their gradients and ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metapeft.hypergradients import CG, Exact, hypergradient
from metapeft.inner import LBFGS, SGD, Adam
from tests.conftest import import_peer

pytestmark = pytest.mark.peers
Tensors = dict[str, Tensor]
LR, STEPS = 0.1, 5


def problem() -> tuple[Any, Any, Tensors, Tensors, dict[str, Any]]:
    """A two-layer network with a learned penalty of each input and learned targets' shift."""
    numbers = np.random.default_rng(0)
    arrays = {
        "x": numbers.standard_normal((12, 3)),
        "y": numbers.standard_normal((12, 2)),
        "xv": numbers.standard_normal((9, 3)),
        "yv": numbers.standard_normal((9, 2)),
    }
    u = {
        "log": torch.from_numpy(0.3 * numbers.standard_normal(3)),
        "shift": torch.tensor([0.1, -0.2]).double(),
    }
    w = {
        "a": torch.from_numpy(numbers.standard_normal((3, 4))),
        "b": torch.from_numpy(numbers.standard_normal((4, 2))),
    }
    data = {name: torch.from_numpy(value) for name, value in arrays.items()}

    def inner(u: Any, w: Any) -> Tensor:
        out = torch.tanh(data["x"] @ w["a"]) @ w["b"]
        penalty = (u["log"].exp() * w["a"].square().sum(1)).sum() + 0.5 * w["b"].square().sum()
        return (out - data["y"] - u["shift"]).square().mean() + penalty / 10

    def outer(u: Any, w: Any) -> Tensor:
        return (torch.tanh(data["xv"] @ w["a"]) @ w["b"] - data["yv"]).square().mean()

    return inner, outer, u, w, arrays


def ours(solver: Any, method: Any) -> Tensors:
    inner, outer, u, w, _ = problem()
    return hypergradient(outer, inner, u, w, solver, method).grads


def assert_same(found: Tensors, expected: dict[str, Any], relative: float) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), np.asarray(value), rtol=relative, atol=relative / 100)


class Inner(nn.Module):
    """The inner variables as a module, which TorchOpt and higher want."""

    def __init__(self, w: Tensors) -> None:
        super().__init__()
        for name, value in w.items():
            setattr(self, name, nn.Parameter(value.clone()))

    def forward(self, objective: Any, u: Tensors) -> Tensor:
        return objective(u, {"a": self.a, "b": self.b})


@pytest.mark.parametrize("method", ["unroll", "recompute", "forward"])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.filterwarnings("ignore")  # TorchOpt's own
def test_torchopt_through_its_optimisers(method: str, momentum: bool) -> None:
    torchopt = import_peer("torchopt")
    inner, outer, u, w, _ = problem()
    leaves = {name: value.clone().requires_grad_() for name, value in u.items()}
    net = Inner(w)
    optimizer = torchopt.MetaAdam(net, lr=LR) if momentum else torchopt.MetaSGD(net, lr=LR)
    for _ in range(STEPS):
        optimizer.step(net(inner, leaves))
    expected = torch.autograd.grad(net(outer, leaves), list(leaves.values()))
    solver = Adam(STEPS, LR) if momentum else SGD(STEPS, LR)
    # TorchOpt takes 1 - 0.999^k in float32: 6e-8 of 1, or 6e-5 of the first correction
    assert_same(ours(solver, method), dict(zip(leaves, expected)), 5e-4 if momentum else 1e-8)


@pytest.mark.parametrize("method", ["unroll", "recompute", "forward"])
def test_higher_through_its_optimisers(method: str) -> None:
    higher = import_peer("higher")
    inner, outer, u, w, _ = problem()
    leaves = {name: value.clone().requires_grad_() for name, value in u.items()}
    net = Inner(w)
    with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=LR)) as (model, optimizer):
        for _ in range(STEPS):
            optimizer.step(model(inner, leaves))
        expected = torch.autograd.grad(model(outer, leaves), list(leaves.values()))
    assert_same(ours(SGD(STEPS, LR), method), dict(zip(leaves, expected)), 1e-10)


def in_jax(arrays: dict[str, Any]) -> tuple[Any, Any, Any]:
    """JAX in float64, and the two objectives written in it."""
    jax = import_peer("jax")
    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy

    def inner(w: Any, u: Any) -> Any:
        out = jnp.tanh(arrays["x"] @ w["a"]) @ w["b"]
        penalty = (jnp.exp(u["log"]) * (w["a"] ** 2).sum(1)).sum() + 0.5 * (w["b"] ** 2).sum()
        return ((out - arrays["y"] - u["shift"]) ** 2).mean() + penalty / 10

    def outer(w: Any) -> Any:
        return ((jnp.tanh(arrays["xv"] @ w["a"]) @ w["b"] - arrays["yv"]) ** 2).mean()

    return jax, inner, outer


def numpy_of(values: Tensors) -> dict[str, Any]:
    return {name: value.numpy() for name, value in values.items()}


@pytest.mark.parametrize("method", ["unroll", "recompute", "forward"])
def test_jax_through_a_loop(method: str) -> None:
    _, _, u, w, arrays = problem()
    jax, inner, outer = in_jax(arrays)

    def value(u: Any) -> Any:
        now = numpy_of(w)
        for _ in range(STEPS):
            grads = jax.grad(inner)(now, u)
            now = {name: now[name] - LR * grads[name] for name in now}
        return outer(now)

    assert_same(ours(SGD(STEPS, LR), method), jax.grad(value)(numpy_of(u)), 1e-9)


@pytest.mark.parametrize("method", [CG(60), Exact()], ids=["cg", "exact"])
@pytest.mark.filterwarnings("ignore")  # jaxopt's own: it is no longer developed
def test_jaxopt_by_implicit_differentiation(method: Any) -> None:
    _, _, u, w, arrays = problem()
    jax, inner, outer = in_jax(arrays)
    jaxopt = import_peer("jaxopt")
    solver = jaxopt.LBFGS(inner, maxiter=3000, tol=1e-12, implicit_diff=True)
    found = jax.grad(lambda u: outer(solver.run(numpy_of(w), u).params))(numpy_of(u))
    # both solvers stop at a gradient of about 1e-10; the derivative errs as much over the smallest curvature
    assert_same(ours(LBFGS(300, lr=0.5), method), found, 1e-5)

"""TorchOpt's own cases: its implicit MAML and ridge regression, outer steps of gradient descent.

Source: metaopt/torchopt, tests/test_implicit.py (`test_imaml_solve_normal_cg`, `test_imaml_module`,
`test_rr_solve_cg`), whose inputs `torch.randint(0, 1, ...)` are all 0, so that only the biases move; here with others
too.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.hypergradients import CG
from tests.conftest import import_peer

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),
]  # its own, and inner steps that are few
Tensors = dict[str, Tensor]
BATCH, BATCHES, SIZE = 8, 3, 10


@pytest.fixture(scope="module")
def torchopt() -> ModuleType:
    return import_peer("torchopt")


def episodes(zeros: bool) -> list[tuple[Tensor, Tensor]]:
    numbers = torch.Generator().manual_seed(42)
    x = torch.randn(BATCHES, BATCH, SIZE, generator=numbers, dtype=torch.float64)
    y = torch.randint(0, SIZE, (BATCHES, BATCH), generator=numbers)
    return list(zip(torch.zeros_like(x) if zeros else x, y))


def start() -> Tensors:
    """Ones and zeros, as its `FcNet` begins."""
    return {"weight": torch.ones(SIZE, SIZE).double(), "bias": torch.zeros(SIZE).double()}


def regularised(w: Any, meta: Any, x: Tensor, y: Tensor) -> Tensor:
    """Its objective: cross entropy and half the squared distance from the meta parameters."""
    loss = F.cross_entropy(F.linear(x, w["weight"], w["bias"]), y)
    return loss + sum((w[name] - meta[name]).square().sum() for name in w) / 2


def with_custom_root(torchopt: ModuleType, data: Any, lr: float, inner_lr: float, updates: int) -> Tensors:
    """Outer steps with its decorator: a root of the objective's gradient, by CG on the normal equations."""
    names, meta = list(start()), tuple(value.requires_grad_() for value in start().values())

    def objective(w: Any, meta: Any, x: Tensor, y: Tensor) -> Tensor:
        return regularised(dict(zip(names, w)), dict(zip(names, meta)), x, y)

    @torchopt.diff.implicit.custom_root(
        torch.func.grad(objective),
        argnums=1,
        solve=torchopt.linear_solve.solve_normal_cg(maxiter=200, rtol=1e-14, atol=1e-14),
    )
    def solved(w: Any, meta: Any, x: Tensor, y: Tensor) -> Any:
        with torch.enable_grad():
            for _ in range(updates):
                grads = torch.autograd.grad(objective(w, meta, x, y), w)
                w = tuple((v - inner_lr * g).detach().requires_grad_() for v, g in zip(w, grads))
        return w

    for x, y in data:
        weight, bias = solved(tuple(v.detach().clone().requires_grad_() for v in meta), meta, x, y)
        grads = torch.autograd.grad(F.linear(x, weight, bias).mean(), meta)
        meta = tuple((v - lr * g).detach().requires_grad_() for v, g in zip(meta, grads))
    return {name: value.detach() for name, value in zip(names, meta)}


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize(
    ("lr", "inner_lr", "updates"), [(1e-3, 2e-2, 20), (1e-3, 2e-3, 100), (1e-4, 2e-2, 50)]
)
def test_imaml(torchopt: ModuleType, zeros: bool, lr: float, inner_lr: float, updates: int) -> None:
    """The start is the outer variable, held near by a proximal term of 1; few steps, both at the point reached."""
    data, meta = episodes(zeros), start()
    for x, y in data:
        found = mp.hypergradient(
            lambda u, w, x=x: F.linear(x, w["weight"], w["bias"]).mean(),
            lambda u, w, x=x, y=y: F.cross_entropy(F.linear(x, w["weight"], w["bias"]), y),
            meta,
            lambda u: dict(u),
            mp.inner.SGD(updates, inner_lr, proximal=1.0),
            CG(iterations=100),
        )
        meta = {name: value - lr * found.grads[name] for name, value in meta.items()}
    expected = with_custom_root(torchopt, data, lr, inner_lr, updates)
    for name, value in expected.items():
        torch.testing.assert_close(meta[name], value, rtol=0, atol=1e-11)
    moved = (expected["weight"] - 1).abs().max()
    assert (moved == 0) == zeros


def test_imaml_as_its_module(torchopt: ModuleType) -> None:
    """`ImplicitMetaGradientModule` differentiates a module's own objective; ours is a learner of full updates."""
    x, y = episodes(zeros=False)[0]
    net = nn.Linear(SIZE, SIZE).double()
    net.load_state_dict(start())

    solve = torchopt.linear_solve.solve_normal_cg(maxiter=200, rtol=1e-14, atol=1e-14)

    class Inner(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solve):  # type: ignore[misc,name-defined]
        def __init__(self, meta_model: nn.Module) -> None:
            super().__init__()
            self.meta_model = meta_model
            self.model = torchopt.module_clone(meta_model, by="deepcopy", detach_buffers=True)

        def forward(self, x: Tensor) -> Any:
            return self.model(x)

        def objective(self, x: Tensor, y: Tensor) -> Any:
            pairs = zip(self.parameters(), self.meta_parameters())
            return F.cross_entropy(self.model(x), y) + sum((a - b).square().sum() for a, b in pairs) / 2

        def solve(self, x: Tensor, y: Tensor) -> Any:
            own = tuple(self.parameters())
            optimizer = torch.optim.SGD(own, lr=0.02)
            with torch.enable_grad():
                for _ in range(50):
                    optimizer.zero_grad()
                    self.objective(x, y).backward(inputs=own)
                    optimizer.step()
            return self

    F.cross_entropy(Inner(net).solve(x, y)(x), y).backward()
    learner = mp.methods.imaml(
        net, steps=50, lr=0.02, proximal=1.0, norm="running", head="learned", hypergradient=CG(100)
    )
    found = learner.hypergradient(mp.EpisodeBatch(x[None], y[None], x[None], y[None]))
    for name, value in net.named_parameters():
        torch.testing.assert_close(found.grads[f"weights.{name}"], value.grad, rtol=1e-8, atol=1e-12)


def test_ridge_regression_by_cg(torchopt: ModuleType) -> None:
    """Four outer steps on the penalty of a regression that its CG solves."""
    numbers = torch.Generator().manual_seed(42)
    data = torch.randn(4, 2, 64, SIZE + 1, generator=numbers, dtype=torch.float64)
    first = torch.rand((), generator=numbers, dtype=torch.float64)
    zeros, lr = torch.zeros(SIZE).double(), 1e-2

    def objective(w: Tensor, penalty: Tensor, table: Tensor) -> Tensor:
        residual = table[:, :SIZE] @ w - table[:, SIZE]
        return residual.square().mean() / 2 + penalty * w.square().sum() / 2

    @torchopt.diff.implicit.custom_root(torch.func.grad(objective), argnums=1)
    def solved(w: Tensor, penalty: Tensor, table: Tensor) -> Tensor:
        x, y = table[:, :SIZE], table[:, SIZE]
        solve = torchopt.linear_solve.solve_cg(ridge=len(y) * penalty.item(), init=w, maxiter=200, rtol=1e-14)
        return solve(matvec=lambda u: x.T @ (x @ u), b=x.T @ y)

    theirs, ours = first.clone().requires_grad_(), {"penalty": first}
    solver = mp.inner.SGD(400, 0.3)
    for train, query in data:
        loss = F.mse_loss(query[:, :SIZE] @ solved(zeros, theirs, train), query[:, SIZE])
        theirs = (theirs - lr * torch.autograd.grad(loss, theirs)[0]).detach().requires_grad_()
        found = mp.hypergradient(
            lambda u, w, table: F.mse_loss(table[:, :SIZE] @ w["w"], table[:, SIZE]),
            lambda u, w, table: objective(w["w"], u["penalty"], table),
            ours,
            {"w": zeros},
            solver,
            CG(50),
            data=(train, query),
        )
        ours = {"penalty": ours["penalty"] - lr * found.grads["penalty"]}
    assert ours["penalty"].item() == pytest.approx(theirs.item(), rel=1e-6)
    assert abs(theirs.item() - first.item()) > 1e-4

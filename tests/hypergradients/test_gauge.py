"""LoRA's gauge in a learner: a singular inner Hessian, and the implicit gradient of the problem on the quotient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metapeft as mp
from metapeft.episodes.episode import EpisodeBatch
from metapeft.hypergradients import CG, Exact
from metapeft.inner import SGD

RANK, SIZE = 2, 4


@pytest.mark.parametrize(
    "engine", [Exact(), pytest.param(CG(400), marks=pytest.mark.slow)], ids=["exact", "cg"]
)
def test_the_gradient_on_the_quotient(engine: Any) -> None:
    """A linear layer with LoRA of rank 2 on a regression whose residual has rank 2: only the product counts.

    At the minimum `W0 + B A` is the least-squares map of the support set if `W0` differs from it by rank 2, so
    the inner solution is a function of the targets alone there. The outer variables are the weights W0, moved in
    directions that keep the rank: `W0 = target - L M R'` with L, R fixed, dW0 = L dM R'. On the quotient
    (matrices of rank 2) the minimum stays the least-squares map, so F does not change: its slope is 0 there,
    while the partial derivative at a fixed product is not.
    """
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    target, left, right = normal(SIZE, SIZE), normal(SIZE, RANK), normal(SIZE, RANK)
    x, probe = normal(1, 40, SIZE), normal(1, 6, SIZE)
    net = nn.Linear(SIZE, SIZE, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(target - left @ right.T)
    batch = EpisodeBatch(x, x @ target.T, probe, normal(1, 6, SIZE))
    learner = mp.Learner(
        mp.attach(net, mp.LoRA(RANK)),
        SGD(1200, 0.25),
        hypergradient=engine,
        loss=F.mse_loss,
    )
    found = learner.hypergradient(batch)
    product = (found.w["weight.B"] @ found.w["weight.A"])[0]
    torch.testing.assert_close(net.weight + product, target, rtol=1e-7, atol=1e-8)

    # along the tangents of the rank-2 matrices at B A the update follows W0, so the gradient vanishes there;
    # across them it cannot follow: gradient of F at a fixed product, projected on what is orthogonal
    weight = target.clone().requires_grad_()
    (at_fixed,) = torch.autograd.grad(F.mse_loss(probe @ weight.T, batch.query_y), weight)
    moment = torch.linalg.inv(x[0].T @ x[0] / len(x[0]))  # the inner metric: |(W - W*) x|^2
    grad, u, v = found.grads["weights.weight"], *_bases(product)
    tangent = u @ normal(RANK, SIZE) + normal(SIZE, RANK) @ v.T
    assert float((grad * tangent).sum().abs()) < 1e-6 * float(grad.norm() * tangent.norm())
    expected = _across(at_fixed, u, v, moment)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-8)
    if isinstance(engine, Exact):
        assert found.log["rank"].tolist() == [2 * RANK * SIZE - RANK**2]


def _bases(product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases of the columns and the rows of a matrix of rank 2."""
    u, _, v = torch.linalg.svd(product)
    return u[:, :RANK].contiguous(), v[:RANK].T.contiguous()


def _across(g: torch.Tensor, u: torch.Tensor, v: torch.Tensor, moment_inverse: torch.Tensor) -> torch.Tensor:
    """`P* g`: the adjoint of `dW0 -> dW0 - (its projection on the tangents in the metric of the inputs)`.

    Tangents `D = U a + b V'`; the inner problem takes D minimising `tr (E + D) M (E + D)'` for a change E of W0.
    Solved here as an ordinary least-squares problem in (a, b), one basis matrix of E after another.
    """
    root = torch.linalg.cholesky(torch.linalg.inv(moment_inverse))
    size = len(g)
    eye = torch.eye(size, dtype=g.dtype)
    # vec(U a) and vec(b V'), rows of E one after the other; weighted by the root of the metric
    columns = torch.cat([torch.kron(u, eye), torch.kron(eye, v)], 1)
    weight = torch.kron(eye, root.T.contiguous())
    change = weight
    solution = torch.linalg.lstsq(weight @ columns, change, driver="gelsd").solution
    remains = torch.eye(size * size, dtype=g.dtype) - columns @ solution
    return (remains.T @ g.flatten()).reshape(g.shape)

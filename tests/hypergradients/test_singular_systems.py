"""Implicit engines where the linear system is singular, indefinite, or not solved."""

from __future__ import annotations

import warnings

import pytest
import torch

import metapeft as mp
from metapeft.hypergradients import CG, Exact, IndefiniteHessian, Neumann, NotConverged, hypergradient
from metapeft.inner import SGD
from tests.hypergradients.quadratics import assert_close, quadratic


def low_rank(seed=0):
    """`min_{A, B} 1/2 |B A - target(u)|^2` at full rank: four gauge directions, a minimum that is 0."""
    g = torch.Generator().manual_seed(seed)
    left, right, probe = (torch.randn(4, 2, generator=g, dtype=torch.float64) for _ in range(3))

    def target(u):
        return left @ (torch.eye(2, dtype=torch.float64) + u["m"]) @ right.T

    def inner(u, w):
        return (w["B"] @ w["A"] - target(u)).square().sum() / 2

    def outer(u, w):
        product = w["B"] @ w["A"]
        return (product @ probe).square().sum()

    u = {"m": 0.1 * torch.randn(2, 2, generator=g, dtype=torch.float64)}
    start = {"A": right.T.clone(), "B": left.clone()}
    return (
        outer,
        inner,
        u,
        start,
        lambda u: outer(u, {"B": target(u), "A": torch.eye(4, dtype=torch.float64)}),
    )


@pytest.mark.parametrize("engine", [Exact(), CG(60)], ids=repr)
def test_the_gauge_freedom_of_low_rank_factors_is_legal(engine):
    """A zero-loss point: the product equals the target, so F is a function of u alone (the quotient)."""
    outer, inner, u, start, on_quotient = low_rank()
    found = hypergradient(outer, inner, u, start, SGD(800, 0.03), engine)
    leaf = u["m"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(on_quotient({"m": leaf}), leaf)
    torch.testing.assert_close(found.grads["m"], expected, rtol=1e-6, atol=1e-8)
    if isinstance(engine, Exact):
        assert found.log["rank"].tolist() == [16 - 4]


@pytest.mark.parametrize("engine", [Exact(), CG(60)], ids=repr)
def test_a_right_hand_side_outside_the_range_is_refused(engine):
    outer, inner, u, start, _ = low_rank()

    def gauge_dependent(u, w):
        return w["A"].square().sum() + outer(u, w)

    with pytest.raises(mp.NumericalError, match="singular"):
        hypergradient(gauge_dependent, inner, u, start, SGD(800, 0.03), engine)


@pytest.mark.parametrize("engine", [Exact(), CG(20)], ids=repr)
def test_a_linear_objective_has_no_curvature_at_all(engine):
    with pytest.warns(NotConverged), pytest.raises(mp.NumericalError, match="singular"):
        hypergradient(
            lambda u, w: w["x"].sum(),
            lambda u, w: u["c"] * w["x"].sum(),
            {"c": torch.tensor(1.0)},
            {"x": torch.ones(3)},
            SGD(1, 0.1),
            engine,
        )


def saddle(u, w):
    return u["c"] * (w["x"] * torch.tensor([1.0, -0.5, 2.0])) @ w["x"] / 2


def test_cg_says_that_the_hessian_is_indefinite():
    u, start = {"c": torch.tensor(1.5)}, {"x": torch.tensor([0.2, 0.3, 0.1])}
    call = (lambda u, w: (w["x"] - 1).square().sum(), saddle, u, start, SGD(0, 0.1))
    with pytest.warns(IndefiniteHessian, match="damping"), pytest.warns(NotConverged):
        found = hypergradient(*call, CG(20))
    assert found.log["negative_curvature"].tolist() == [True]
    with pytest.warns(NotConverged):
        exact = hypergradient(*call, Exact())
    assert_close(found.grads, exact.grads, 1e-4)  # float32: solved all the same, and its residual says so
    assert found.residual < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        hypergradient(*call, CG(20, damping=2.0))  # positive definite: nothing to say


def test_cg_that_gains_nothing_on_an_indefinite_hessian_fails():
    u, start = {"c": torch.tensor(1.0)}, {"x": torch.zeros(2)}
    H = torch.tensor([[1.0, 0.0], [0.0, -1.1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        with pytest.raises(mp.NumericalError, match="indefinite"):
            hypergradient(
                lambda u, w: w["x"].sum(),
                lambda u, w: u["c"] * w["x"] @ H @ w["x"],
                u,
                start,
                SGD(0, 0.1),
                CG(1),
            )


def test_a_diverging_series_is_warned_about():
    q = quadratic(5, 10.0, seed=1)
    u, start = {name: q.u[name] for name in ("c", "s", "d")}, {"w": q.P @ q.u["t"]}
    with pytest.warns(NotConverged, match="Neumann series diverges"):
        hypergradient(q.outer, q.inner, u, start, SGD(400, q.lr), Neumann(30, lr=3.0))

"""Ridge and logistic regression against SciPy, and their hypergradients."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

import metapeft as mp
from metapeft.hypergradients import CG, Exact, hypergradient
from metapeft.inner import (
    LBFGS,
    Logistic,
    Ridge,
    Softmax,
    from_box,
    from_positive,
    from_simplex,
    logistic,
    ridge,
    softmax_regression,
    solve,
)


def data(n, d, c=2, seed=0, lead=()):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*lead, *shape, generator=g, dtype=torch.float64)

    return normal(n, d), normal(n, c), normal(n, d), normal(n, c), normal(n).abs()


CROSS = torch.nn.functional.binary_cross_entropy_with_logits
#: every solver of the table that needs no step: the sum over rows `(n,)` that it minimises, and its labels of y
CLOSED = {
    "Ridge": (Ridge, lambda logits, y: (logits - y).square().sum(-1) / 2, lambda y: y),
    "Logistic": (Logistic, lambda z, y: CROSS(z, y, reduction="none"), lambda y: y[..., 0].sigmoid()),
    "Softmax": (Softmax, lambda z, y: -(y * z.log_softmax(-1)).sum(-1), lambda y: y.softmax(-1)),
}


@pytest.mark.parametrize("lead", [(), (3,)], ids=["one", "tasks"])
@pytest.mark.parametrize("name", CLOSED)
def test_a_solver_in_closed_form_is_stationary_and_has_the_slopes_of_its_solution(name, lead):
    """Of an objective of its own, with learned features, penalty and weights; slopes by central differences."""
    make, loss, labels = CLOSED[name]
    x, y, xv, yv, s = data(7, 3, lead=lead)
    y, yv = labels(y), labels(yv)
    u = {"log": torch.tensor(0.3, dtype=torch.float64), "s": s + 0.1, "shift": x[..., 0, :].clone()}
    width = (*lead, 3, 2) if name != "Logistic" else (*lead, 3)

    def features(u):
        return x + 0.1 * u["shift"].unsqueeze(-2), y

    def scores(x, w):
        return x @ w if name != "Logistic" else (x @ w.unsqueeze(-1)).squeeze(-1)

    def inner(u, w):
        penalty = u["log"].exp() / 2 * w["w"].square().reshape(*lead, -1).sum(-1)
        return (u["s"] * loss(scores(features(u)[0], w["w"]), y)).sum(-1) + penalty

    def outer(u, w):
        return loss(scores(xv, w["w"]), yv).sum(-1)

    solver = make(features, lambda u: u["log"].exp(), weights=lambda u: u["s"])
    start, tasks = {"w": torch.zeros(width, dtype=torch.float64)}, bool(lead)
    found = hypergradient(outer, inner, u, start, solver, "unroll", task_axis=tasks)
    at = {"w": found.w["w"].clone().requires_grad_()}
    (slope,) = torch.autograd.grad(inner(u, at).sum(), at["w"])
    assert slope.abs().max() < 1e-8

    def value(u):
        return outer(u, solve(inner, u, start, solver, task_axis=tasks)).mean().item()

    for entry, point in u.items():
        way = torch.linspace(0.5, 1, max(point.numel(), 1), dtype=torch.float64).view_as(point)
        up, down = ({**u, entry: point + sign * 1e-5 * way} for sign in (1, -1))
        expected = (value(up) - value(down)) / 2e-5  # the minimum is known to 1e-10: 1e-5 of the slope
        assert (found.grads[entry] * way).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-6), entry


@pytest.mark.parametrize(("n", "d"), [(12, 4), (4, 12), (5, 5)])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_is_the_minimum(n, d, penalty, weighted):
    x, y, _, _, s = data(n, d)
    weights = s if weighted else torch.ones(n, dtype=torch.float64)
    w = ridge(x, y, penalty, weights if weighted else None)
    slope = x.T @ (weights[:, None] * (x @ w - y)) + penalty * w
    assert slope.abs().max() < 1e-9


def test_ridge_is_batched_with_a_penalty_and_weights_of_each_task():
    x, y, _, _, s = data(4, 6, lead=(3,))
    penalty = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    together = ridge(x, y, penalty, s)
    for t in range(3):
        torch.testing.assert_close(together[t], ridge(x[t], y[t], penalty[t].item(), s[t]))


@pytest.mark.parametrize(("n", "d"), [(8, 3), (3, 8)])
def test_gradcheck_of_ridge_and_logistic(n, d):
    x, y, _, _, s = data(n, d)
    inputs = [t.clone().requires_grad_() for t in (x, y, torch.tensor(0.7, dtype=torch.float64), s + 0.1)]
    assert torch.autograd.gradcheck(ridge, inputs)
    assert torch.autograd.gradgradcheck(ridge, inputs)
    labels = torch.sigmoid(y[:, 0]).detach().requires_grad_()
    assert torch.autograd.gradcheck(logistic, [inputs[0], labels, inputs[2], inputs[3]])


@pytest.mark.parametrize("method", ["unroll", "recompute", CG(60), Exact()], ids=repr)
@pytest.mark.parametrize("penalty", [0.05, 1.0, 20.0])
def test_ridge_hypergradient_against_scipy_by_central_differences(method, penalty):
    x, y, xv, yv, _ = data(15, 6, c=1)
    start = {"w": torch.zeros(6, 1, dtype=torch.float64)}

    def inner(u, w):
        return (x @ w["w"] - y).square().sum() + u["log"].exp() * w["w"].square().sum()

    def outer(u, w):
        return (xv @ w["w"] - yv).square().sum()

    def by_scipy(log):
        X, Y, XV, YV = (value.numpy() for value in (x, y, xv, yv))
        fit = scipy.optimize.minimize(
            lambda w: ((X @ w - Y[:, 0]) ** 2).sum() + np.exp(log) * (w**2).sum(),
            np.zeros(6),
            jac=lambda w: 2 * X.T @ (X @ w - Y[:, 0]) + 2 * np.exp(log) * w,
            method="BFGS",
            options={"gtol": 1e-10},
        )
        return ((XV @ fit.x - YV[:, 0]) ** 2).sum()

    u = {"log": torch.tensor(penalty, dtype=torch.float64).log()}
    solver = Ridge(lambda u: (x, y), lambda u: u["log"].exp())
    found = hypergradient(outer, inner, u, start, solver, method)
    log, h = u["log"].item(), 1e-4
    slope = (by_scipy(log + h) - by_scipy(log - h)) / (2 * h)
    assert found.grads["log"].item() == pytest.approx(slope, rel=1e-6)  # h^2 and SciPy's own tolerance
    assert found.value.item() == pytest.approx(by_scipy(log), rel=1e-9)


def test_weighted_ridge_reweights_data():
    x, y, xv, yv, s = data(10, 3, c=1)
    start = {"w": torch.zeros(3, 1, dtype=torch.float64)}
    solver = Ridge(lambda u: (x, y), 0.5, weights=lambda u: u["s"])
    found = hypergradient(lambda u, w: (xv @ w["w"] - yv).square().sum(), None, {"s": s}, start, solver)
    leaf = s.clone().requires_grad_()
    w = torch.linalg.solve(x.T @ (leaf[:, None] * x) + 0.5 * torch.eye(3).double(), x.T @ (leaf[:, None] * y))
    (expected,) = torch.autograd.grad((xv @ w - yv).square().sum(), leaf)
    torch.testing.assert_close(found.grads["s"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalty", [1e-3, 0.3, 10.0])
def test_logistic_is_the_minimum_that_scipy_finds(penalty):
    x, y, _, _, s = data(30, 4, seed=3)
    labels = (y[:, 0] > 0).double()
    w = logistic(x, labels, penalty, s)
    X, L, S = x.numpy(), labels.numpy(), s.numpy()
    fit = scipy.optimize.minimize(
        lambda w: (S * (np.logaddexp(0, X @ w) - L * (X @ w))).sum() + penalty / 2 * (w**2).sum(),
        np.zeros(4),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    np.testing.assert_allclose(w.numpy(), fit.x, rtol=1e-4, atol=1e-5)


def test_logistic_hypergradient_is_the_implicit_one():
    x, y, xv, yv, _ = data(20, 4, seed=4)
    labels, test = (y[:, 0] > 0).double(), (yv[:, 0] > 0).double()
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    u = {"log": torch.tensor([0.1, 0.0, -1.0, 1.0], dtype=torch.float64)}

    def inner(u, w):  # a penalty of each feature, by rescaling the features
        return bce((x * u["log"].exp()) @ w["w"], labels, reduction="sum") + 0.2 / 2 * w["w"].square().sum()

    def outer(u, w):
        return bce((xv * u["log"].exp()) @ w["w"], test)

    solver = Logistic(lambda u: (x * u["log"].exp(), labels), 0.2)
    start = {"w": torch.zeros(4, dtype=torch.float64)}
    unrolled = hypergradient(outer, inner, u, start, solver, "unroll")
    exact = hypergradient(outer, inner, u, start, solver, "exact")
    torch.testing.assert_close(unrolled.grads["log"], exact.grads["log"], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_hyper_parameters_of_a_logistic_regression_reach_the_optimum_that_scipy_finds():
    """1,000 inner variables, one penalty: descend the hypergradient of CG; SciPy minimises over it."""
    g = torch.Generator().manual_seed(5)
    n, d = 60, 1000
    truth = torch.randn(d, generator=g, dtype=torch.float64) * (torch.arange(d) < 20)
    x, xv = (torch.randn(n, d, generator=g, dtype=torch.float64) / d**0.5 for _ in range(2))
    y, yv = (
        (5 * value @ truth + torch.randn(n, generator=g, dtype=torch.float64) > 0).double()
        for value in (x, xv)
    )
    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def inner(u, w):
        return bce(x @ w["w"], y, reduction="sum") + u["log"].exp() / 2 * w["w"].square().sum()

    def outer(u, w):
        return bce(xv @ w["w"], yv)

    log, w = torch.tensor(-3.0, dtype=torch.float64), {"w": torch.zeros(d, dtype=torch.float64)}
    for _ in range(60):
        found = hypergradient(outer, inner, {"log": log}, w, LBFGS(60), CG(40))
        w, log = found.w, log - 30 * found.grads["log"]  # warm start

    def by_scipy(log):
        fit = logistic(x, y, float(np.exp(log)))  # itself checked against SciPy above
        return bce(xv @ fit, yv).item()

    best = scipy.optimize.minimize_scalar(by_scipy, bounds=(-6, 3), method="bounded", options={"xatol": 1e-6})
    assert log.item() == pytest.approx(best.x, abs=1e-2)
    assert by_scipy(log.item()) == pytest.approx(best.fun, rel=1e-6)


#: three functions of the examples' weights s, at one x and y
WEIGHTED = {
    "ridge": lambda x, y, s: ridge(x, y, 0.7, s),
    "logistic": lambda x, y, s: logistic(x, y[:, 0].sigmoid(), 0.7, s),
    "softmax": lambda x, y, s: softmax_regression(x, y.softmax(-1), 0.7, s),
}


def test_what_has_no_solution_is_refused():
    x, y, *_ = data(5, 3)
    wide, right, *_, s = data(3, 8)
    with pytest.raises(mp.NumericalError, match="penalty"):
        ridge(wide, right, -1e-3, s)
    with pytest.raises(mp.NumericalError, match="penalty"):
        ridge(x, y, -10.0)
    with pytest.raises(mp.NumericalError, match="finite"):
        ridge(x * float("nan"), y, 1.0)
    with pytest.raises(mp.NumericalError, match="converged"):
        logistic(x, (y[:, 0] > 0).double(), 1e-3, iterations=1)
    start = {"w": torch.zeros(3, 1, dtype=torch.float64)}
    with pytest.raises(ValueError, match="has shape"):
        hypergradient(
            lambda u, w: w["w"].sum(), None, {"p": torch.tensor(1.0)}, start, Ridge(lambda u: (x, y), 1.0)
        )
    for bad in (lambda: from_positive(torch.tensor([0.0])), lambda: from_box(torch.tensor(1.0), 0, 1),
                lambda: from_simplex(torch.tensor([0.5, 0.6]))):  # fmt: skip
        with pytest.raises(ValueError):
            bad()

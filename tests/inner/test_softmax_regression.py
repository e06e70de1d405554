"""Logistic regression with several classes: the minimum, its derivatives, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch

import metapeft as mp
from metapeft.hypergradients import CG, Exact, hypergradient
from metapeft.inner import Softmax, logistic, softmax_regression


def data(n, d, c, seed=0, lead=()):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*lead, n, d, generator=g, dtype=torch.float64)
    y = torch.softmax(torch.randn(*lead, n, c, generator=g, dtype=torch.float64), -1)
    return x, y, torch.rand(*lead, n, generator=g, dtype=torch.float64) + 0.1


def by_scipy(x, y, penalty, weights, x0=None):
    X, Y, S = x.numpy(), y.numpy(), weights.numpy()
    d, c = X.shape[1], Y.shape[1]

    def loss(flat):
        logits = X @ flat.reshape(d, c)
        fit = Y.sum(1) * scipy.special.logsumexp(logits, axis=1) - (Y * logits).sum(1)
        return (S * fit).sum() + penalty / 2 * (flat**2).sum()

    def slope(flat):
        w = flat.reshape(d, c)
        error = S[:, None] * (Y.sum(1, keepdims=True) * scipy.special.softmax(X @ w, axis=1) - Y)
        return (X.T @ error + penalty * w).ravel()

    fit = scipy.optimize.minimize(loss, np.zeros(d * c), jac=slope, method="BFGS", options={"gtol": 1e-10})
    return fit.x.reshape(d, c)


# more rows than columns: the Hessian itself; fewer: Woodbury
SHAPES = [(12, 3, 4), (3, 12, 4), (5, 5, 2)]


@pytest.mark.parametrize(("n", "d", "c"), SHAPES)
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 30.0])
def test_it_is_the_minimum_that_scipy_finds(n, d, c, penalty):
    x, y, s = data(n, d, c)
    found = softmax_regression(x, y, penalty, s)
    # BFGS stops at a gradient of 1e-10 or where the loss no longer falls: 1e-8 in it is 1e-6 over 0.01 in w
    np.testing.assert_allclose(found.numpy(), by_scipy(x, y, penalty, s), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss_is_steep", [False, True])
def test_two_classes_are_the_binary_regression(loss_is_steep):
    """Of two columns only the difference counts, and its penalty is half as large."""
    x, _, s = data(9, 3, 2)
    labels = (x[:, 0] + x[:, 1] > 0).double()
    scale = 20.0 if loss_is_steep else 1.0
    both = softmax_regression(scale * x, torch.stack([1 - labels, labels], 1), 0.3, s)
    torch.testing.assert_close(
        both[:, 1] - both[:, 0], logistic(scale * x, labels, 0.15, s), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize(("n", "d", "c"), [(4, 2, 3), pytest.param(2, 4, 3, marks=pytest.mark.slow)])
def test_first_and_second_derivatives(n, d, c):
    x, y, s = data(n, d, c)
    offset = torch.randn(1, c, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [value.clone().requires_grad_() for value in (x, y, torch.tensor(0.7, dtype=torch.float64), s)]

    def fit(*inputs):
        return softmax_regression(*inputs, offset)

    assert torch.autograd.gradcheck(fit, inputs)
    assert torch.autograd.gradgradcheck(fit, inputs)


def test_second_derivatives_of_the_binary_regression():
    x, _, s = data(5, 2, 2)
    labels = torch.tensor([0.2, 0.9, 0.5, 0.1, 0.6], dtype=torch.float64)
    inputs = [value.clone().requires_grad_() for value in (x, labels, torch.tensor(0.7).double(), s)]
    assert torch.autograd.gradgradcheck(logistic, inputs)


@pytest.mark.parametrize(("n", "d", "c"), SHAPES)
def test_a_batch_with_masks_and_penalties_equals_one_task_after_another(n, d, c):
    x, y, _ = data(n, d, c, lead=(3,))
    mask = torch.ones(3, n, dtype=torch.float64)
    mask[1, -1:], mask[2, -2:] = 0, 0
    penalty = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    together = softmax_regression(x, y, penalty, mask)
    for t in range(3):
        kept = mask[t] > 0
        alone = softmax_regression(x[t][kept], y[t][kept], penalty[t].item())
        torch.testing.assert_close(together[t], alone, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", ["unroll", "recompute", CG(80), Exact()], ids=repr)
def test_hypergradient_of_the_penalty_against_scipy_by_central_differences(method):
    x, y, _ = data(15, 3, 3, seed=2)
    xv, yv, _ = data(15, 3, 3, seed=3)

    def cross(x, w, y):
        return -(y * torch.log_softmax(x @ w, -1)).sum()

    def outer(u, w):
        return cross(xv, w["w"], yv)

    def inner(u, w):
        return cross(x, w["w"], y) + u["log"].exp() / 2 * w["w"].square().sum()

    solver = Softmax(lambda u: (x, y), lambda u: u["log"].exp())
    u, start = {"log": torch.tensor(0.4, dtype=torch.float64)}, {"w": torch.zeros(3, 3, dtype=torch.float64)}
    found = hypergradient(outer, inner, u, start, solver, method)
    h, ones = 1e-3, torch.ones(15)

    def value(log):
        return cross(xv, torch.from_numpy(by_scipy(x, y, np.exp(log), ones)), yv).item()

    slope = (value(0.4 + h) - value(0.4 - h)) / (2 * h)
    assert found.grads["log"].item() == pytest.approx(slope, rel=1e-5)  # h^2 and SciPy's tolerance


def test_what_has_no_minimum_is_refused():
    x, y, _ = data(5, 3, 2)
    with pytest.raises(mp.NumericalError, match="finite"):
        softmax_regression(x * float("nan"), y, 1.0)
    with pytest.raises(mp.NumericalError, match="penalty"):
        softmax_regression(x, y, -1.0)
    with pytest.raises(mp.NumericalError, match="converged"):
        softmax_regression(x, y, 1e-3, iterations=1)
    with pytest.raises(ValueError, match=r"\(\.\.\., n, c\)"):
        softmax_regression(x, y[0], 1.0)

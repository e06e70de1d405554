"""Unroll, recompute, forward and truncated against the closed form of the K-step iterate."""

from __future__ import annotations

import itertools

import pytest
import torch

from metapeft.hypergradients import Forward, Recompute, Truncated, Unroll, hypergradient
from metapeft.inner import SGD, solve
from tests.hypergradients.quadratics import assert_close, closed_form, quadratic

# K = 200 steps of an iteration whose condition number is 1e4: rounding of the loop is K eps ~ 1e-13 relative
# to the largest term, so 1e-9 leaves room for cancellation between terms.
RELATIVE = 1e-9
ENGINES = [
    Unroll(),
    Recompute(),
    Recompute(every="sqrt"),
    Recompute(every=7),
    Forward(),
    Truncated(window=200),
]
STEPS = (0, 1, 2, 5, 20, 200)
GRID = list(itertools.product((1, 2, 7, 50), (1.0, 10.0, 1e4)))
QUICK = [(1, 10.0), (7, 1e4), (2, 1.0), (50, 1e4)]


def check_grid(engine, steps, grid):
    for seed, (dim, condition) in enumerate(grid):
        q = quadratic(dim, condition, seed)
        found = hypergradient(q.outer, q.inner, q.u, q.start, SGD(steps, q.lr), engine)
        assert_close(found.grads, closed_form(lambda u, q=q: q.value(u, steps), q.u), RELATIVE)
        torch.testing.assert_close(found.value, q.value(q.u, steps), rtol=RELATIVE, atol=0)
        torch.testing.assert_close(found.w["w"], q.iterate(q.u, steps), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("steps", STEPS)
def test_equals_the_closed_form_of_the_iterate(engine, steps):
    count = 4 if steps < 20 else 1 if isinstance(engine, Forward) or steps == 200 else 2
    check_grid(engine, steps, QUICK[:count])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("steps", STEPS)
def test_equals_the_closed_form_on_the_whole_grid(engine, steps):
    check_grid(engine, steps, GRID)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("per", ["step", "element"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_rates_receive_the_gradient_of_the_closed_form(engine, per, steps):
    q = quadratic(5, 10.0, seed=3)
    solver = SGD(steps, 0.3, rates=per)
    rates = solver.rates({"w": torch.zeros(5, dtype=torch.float64)})
    rates = {
        name: value
        + 0.05 * torch.linspace(0, 1, max(value.numel(), 1)).double()[: value.numel()].view_as(value)
        for name, value in rates.items()
    }
    u = {**q.u, **rates}

    def value(u):
        H, w = q.hessian(u), q.P @ u["t"]
        for k in range(steps):
            w = w - u["rates.w"][k] * (H @ w - q.B @ u["c"])
        return q.outer(u, {"w": w})

    found = hypergradient(q.outer, q.inner, u, q.start, solver, engine)
    assert_close(found.grads, closed_form(value, u), RELATIVE)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("engine", ENGINES[:5], ids=repr)
def test_proximal_term_pulls_to_the_start(engine, steps):
    q = quadratic(6, 10.0, seed=5)
    weight, lr = 0.4, 0.5

    def value(u):
        H, w0 = q.hessian(u), q.P @ u["t"]
        w = w0
        for _ in range(steps):
            w = w - lr * (H @ w - q.B @ u["c"] + weight * (w - w0))
        return q.outer(u, {"w": w})

    found = hypergradient(q.outer, q.inner, q.u, q.start, SGD(steps, lr, proximal=weight), engine)
    assert_close(found.grads, closed_form(value, q.u), RELATIVE)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_the_rate_may_be_a_function_of_the_outer_variables(engine):
    q = quadratic(4, 10.0, seed=8)
    u = {**q.u, "log_lr": torch.tensor(-1.0, dtype=torch.float64)}

    def value(u):
        H, w = q.hessian(u), q.P @ u["t"]
        for _ in range(3):
            w = w - u["log_lr"].exp() * (H @ w - q.B @ u["c"])
        return q.outer(u, {"w": w})

    found = hypergradient(q.outer, q.inner, u, q.start, SGD(3, lambda u: u["log_lr"].exp()), engine)
    assert_close(found.grads, closed_form(value, u), RELATIVE)


@pytest.mark.parametrize("window", [1, 2, 5, 19])
def test_truncated_takes_an_earlier_iterate_as_a_constant(window):
    q = quadratic(5, 10.0, seed=1)
    u = {name: q.u[name] for name in ("c", "s", "d")}
    start = {"w": q.P @ q.u["t"]}
    before = solve(q.inner, u, start, SGD(20 - window, q.lr))["w"]

    def value(u):
        H, w = q.hessian(u), before
        for _ in range(window):
            w = w - q.lr * (H @ w - q.B @ u["c"])
        return q.outer(u, {"w": w})

    found = hypergradient(q.outer, q.inner, u, start, SGD(20, q.lr), Truncated(window))
    assert_close(found.grads, closed_form(value, u), RELATIVE)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_start_that_is_an_outer_variable_does_not_leak_into_the_inner_gradient(engine):
    """f reads t itself and through w = t: the inner gradient is partial, 2 w, not d/dt (w^2 + 3 t w)."""
    t = torch.tensor([1.5, -0.5], dtype=torch.float64)

    def inner(u, w):
        return (w["w"].square() + 3 * u["t"] * w["w"]).sum()

    def outer(u, w):
        return (w["w"] ** 3).sum()

    def value(u):
        w = u["t"]
        for _ in range(2):
            w = w - 0.1 * (2 * w + 3 * u["t"])
        return (w**3).sum()

    found = hypergradient(outer, inner, {"t": t}, lambda u: {"w": u["t"]}, SGD(2, 0.1), engine)
    assert_close(found.grads, closed_form(value, {"t": t}), RELATIVE)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_start_computed_from_another_start_does_not_leak(engine):
    t = torch.tensor([1.5, -0.5], dtype=torch.float64)

    def start(u):
        a = u["t"] * 2
        return {"a": a, "b": a * a}

    def inner(u, w):
        return (w["a"].square() * w["b"]).sum()

    def outer(u, w):
        return (w["a"] + w["b"].square()).sum()

    def value(u):
        a, b = 2 * u["t"], (2 * u["t"]) ** 2
        for _ in range(2):
            a, b = a - 0.05 * 2 * a * b, b - 0.05 * a**2
        return (a + b**2).sum()

    found = hypergradient(outer, inner, {"t": t}, start, SGD(2, 0.05), engine)
    assert_close(found.grads, closed_form(value, {"t": t}), RELATIVE)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_nothing_given_is_changed(engine):
    q = quadratic(4, 10.0, seed=2)
    u = {name: value.clone().requires_grad_() for name, value in q.u.items()}
    u["t"].grad = torch.ones_like(u["t"])
    before = {name: value.detach().clone() for name, value in u.items()}
    found = hypergradient(q.outer, q.inner, u, q.start, SGD(3, 0.5), engine)
    for name, value in u.items():
        assert torch.equal(value, before[name])
        assert value.requires_grad
        assert not found.grads[name].requires_grad
    assert torch.equal(u["t"].grad, torch.ones_like(u["t"]))
    assert u["c"].grad is None
    assert not found.value.requires_grad
    assert not found.w["w"].requires_grad

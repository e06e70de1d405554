"""First order, envelope, Reptile, both finite differences and direct against their definitions."""

from __future__ import annotations

import pytest
import torch

from metapeft.hypergradients import AutoLoRA, FiniteDifference, hypergradient
from metapeft.inner import SGD, solve
from tests.hypergradients.quadratics import assert_close, closed_form, quadratic


def curved(seed=0):
    """Objectives with third derivatives, so that no approximation is exact by accident."""
    g = torch.Generator().manual_seed(seed)
    data = torch.randn(6, 4, generator=g, dtype=torch.float64)
    labels = torch.randn(6, generator=g, dtype=torch.float64)

    def inner(u, w):
        out = torch.tanh(data @ w["w"] + u["c"].sum() + w["b"])
        return (out - labels).square().mean() + (u["c"].exp() * w["w"].square()).sum() / 10

    def outer(u, w):
        return torch.tanh(data @ w["w"] - labels).square().sum() + (u["d"] * w["w"]).sum() + w["b"].square()

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    u = {"c": normal(4), "d": normal(4), "t": normal(4)}
    return inner, outer, u, lambda u: {"w": 2 * u["t"], "b": u["t"].sum()}


def partial(function, u, w, of="u"):
    """Partial gradient by autograd, of a function of two dicts."""
    fresh = {name: value.detach().clone().requires_grad_() for name, value in u.items()}
    at = {name: value.detach().clone().requires_grad_() for name, value in w.items()}
    wanted = fresh if of == "u" else at
    found = torch.autograd.grad(
        function(fresh, at), list(wanted.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(wanted, found))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("proximal", [0.0, 0.7])
def test_first_order_takes_inner_gradients_as_constants(steps, proximal):
    inner, outer, u, start = curved()
    solver = SGD(steps, 0.2, rates="step", proximal=proximal)
    u = {**u, **solver.rates({"w": u["t"], "b": u["t"].sum()})}
    reached = {name: value for name, value in u.items() if name != "c"}
    path = solve(inner, u, start, solver, trace=True)
    constant = [partial(inner, u, w, of="w") for w in path[:-1]]

    def value(v):
        origin = start(v)
        w = dict(origin)
        for k, grads in enumerate(constant):
            w = {
                name: w[name] - v[f"rates.{name}"][k] * (grads[name] + proximal * (w[name] - origin[name]))
                for name in w
            }
        return outer(v, w)

    found = hypergradient(
        outer, lambda v, w: inner({**v, "c": u["c"]}, w), reached, start, solver, "first-order"
    )
    assert_close(found.grads, closed_form(value, reached), 1e-12)
    if steps:
        with pytest.raises(ValueError, match=r"u\['c'\]"):
            hypergradient(outer, inner, u, start, solver, "first-order")


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_envelope_is_the_partial_derivative_at_the_adapted_point(steps):
    inner, outer, u, start = curved()
    fixed = start(u)
    u = {"c": u["c"], "d": u["d"]}

    def both(u, w):
        return outer(u, w) + inner(u, w)

    found = hypergradient(both, inner, u, fixed, SGD(steps, 0.2), "envelope")
    assert_close(found.grads, partial(both, u, solve(inner, u, fixed, SGD(steps, 0.2))), 1e-13)
    assert "approximation" in found.log["note"]


def test_envelope_is_exact_for_one_stationary_objective():
    q = quadratic(5, 3.0, seed=0)
    u, start = {"c": q.u["c"], "s": q.u["s"]}, {"w": q.P @ q.u["t"]}
    exact = hypergradient(q.inner, q.inner, u, start, SGD(400, 0.9), "unroll")
    found = hypergradient(q.inner, q.inner, u, start, SGD(400, 0.9), "envelope")
    assert_close(found.grads, exact.grads, 1e-10)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_reptile_is_the_displacement_undivided(steps):
    inner, outer, u, _ = curved()
    fixed = {"c": u["c"], "d": u["d"]}

    def own(v, w):
        return inner(fixed, w)

    def outside(v, w):
        return outer(fixed, w)

    start = {"w": u["t"], "b": u["t"].sum()}
    found = hypergradient(outside, own, start, lambda v: dict(v), SGD(steps, 0.2), "reptile")
    after = solve(own, {}, start, SGD(steps, 0.2))
    assert_close(found.grads, {name: start[name] - after[name] for name in start}, 1e-14)
    torch.testing.assert_close(found.value, outside({}, after))


def test_reptile_over_tasks_is_the_mean_displacement_also_for_a_weight_under_a_zero_start():
    target = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)

    def inner(u, w):
        return (u["W"] + w["delta"] - target).square().sum(1)

    def start(u):
        return {"delta": (u["W"] - u["W"].detach()).expand(4, 3)}

    found = hypergradient(inner, inner, {"W": weight}, start, SGD(3, 0.1), "reptile", task_axis=True)
    delta = found.w["delta"]
    torch.testing.assert_close(delta, (1 - 0.8**3) * (target - weight), rtol=1e-12, atol=0)
    assert_close(found.grads, {"W": -delta.mean(0)}, 1e-13)


@pytest.mark.parametrize("lr", [0.01, 0.3])
@pytest.mark.parametrize("epsilon", [0.01, 0.001])
def test_finite_difference_is_the_textbook_formula_with_the_true_rate(lr, epsilon):
    inner, outer, u, start = curved()
    u, fixed = {"c": u["c"], "d": u["d"]}, start(u)
    after = solve(inner, u, fixed, SGD(1, lr))
    v = partial(outer, u, after, of="w")
    h = epsilon / torch.cat([v["w"], v["b"].view(1)]).norm()
    plus = partial(inner, u, {name: fixed[name] + h * v[name] for name in fixed})
    minus = partial(inner, u, {name: fixed[name] - h * v[name] for name in fixed})
    direct = partial(outer, u, after)
    expected = {name: direct[name] - lr * (plus[name] - minus[name]) / (2 * h) for name in u}
    found = hypergradient(outer, inner, u, fixed, SGD(1, lr), FiniteDifference(epsilon))
    assert_close(found.grads, expected, 1e-10)  # cancellation: 1e-16 / h


def test_finite_difference_tends_to_the_unrolled_step_also_for_starts_and_rates():
    inner, outer, u, start = curved()
    solver = SGD(1, 0.2, rates="element", proximal=0.3)
    u = {**u, **solver.rates({"w": u["t"], "b": u["t"].sum()})}
    exact = hypergradient(outer, inner, u, start, solver, "unroll")
    errors = []
    for epsilon in (1e-2, 1e-3):
        found = hypergradient(outer, inner, u, start, solver, FiniteDifference(epsilon))
        errors.append(sum((found.grads[name] - exact.grads[name]).norm() for name in u))
    assert errors[1] < errors[0] / 50  # second order: 100 times smaller, up to rounding
    assert errors[0] < 1e-3


def test_finite_difference_is_about_one_step():
    inner, outer, u, start = curved()
    with pytest.raises(ValueError, match="one inner step"):
        hypergradient(outer, inner, u, start, SGD(2, 0.1), "finite-difference")
    none = hypergradient(outer, inner, u, start, SGD(0, 0.1), "finite-difference")
    unrolled = hypergradient(outer, inner, u, start, SGD(0, 0.1), "unroll")
    assert_close(none.grads, unrolled.grads, 1e-14)


@pytest.mark.parametrize("epsilon", [0.01, 0.001])
def test_autolora_differentiates_around_the_adapted_point_with_rate_one(epsilon):
    inner, outer, u, start = curved()
    u, fixed = {"c": u["c"], "d": u["d"]}, start(u)
    after = solve(inner, u, fixed, SGD(1, 0.2))
    v = partial(outer, u, after, of="w")
    h = epsilon / torch.cat([v["w"], v["b"].view(1)]).norm()
    plus = partial(inner, u, {name: after[name] + h * v[name] for name in after})
    minus = partial(inner, u, {name: after[name] - h * v[name] for name in after})
    direct = partial(outer, u, after)
    expected = {name: direct[name] - (plus[name] - minus[name]) / (2 * h) for name in u}
    found = hypergradient(outer, inner, u, fixed, SGD(1, 0.2), AutoLoRA(epsilon))
    assert_close(found.grads, expected, 1e-10)
    assert "rate taken as 1" in found.log["note"]


def test_direct_has_no_inner_loop():
    _, outer, u, start = curved()
    u = {"d": u["d"], "t": u["t"]}
    found = hypergradient(outer, None, u, start, method="direct")
    assert_close(found.grads, closed_form(lambda v: outer(v, start(v)), u), 1e-14)
    with pytest.raises(ValueError, match="not used"):
        hypergradient(outer, None, u, start, SGD(1, 0.1), method="direct")

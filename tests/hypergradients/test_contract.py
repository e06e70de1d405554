"""What every engine has in common: tasks, data, aux, steps=0, and names."""

from __future__ import annotations

import warnings

import pytest
import torch

import metapeft as mp
from metapeft.hypergradients import (
    CG,
    Forward,
    MultiStep,
    NotConverged,
    Problem,
    Recompute,
    Result,
    Truncated,
    hypergradient,
)
from metapeft.hypergradients.table import registry as engines
from metapeft.inner import SGD, solve
from tests.hypergradients.quadratics import assert_close, quadratic

NAMES = [name for name in engines.names if name != "direct"]
REACH_ALL = ["unroll", MultiStep(), Recompute(), Recompute("sqrt"), Truncated(9), Forward(), Forward(chunk=2)]


@pytest.fixture(autouse=True)
def _few_steps_do_not_converge():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        yield


def tasks(count=3, seed=0):
    """Three small non-quadratic problems with a shared and a per-task outer variable."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, y = normal(count, 5, 3), normal(count, 5)
    u = {"shared": normal(3), "own": normal(count, 3)}

    def inner(u, w, which=slice(None)):
        out = torch.tanh((x[which] @ w["a"].unsqueeze(-1)).squeeze(-1) + w["b"])
        penalty = (u["shared"].exp() * (w["a"] - u["own"]).square()).sum(-1)
        return (out - y[which]).square().mean(-1) + penalty + w["b"].square().sum(-1) / 2

    def outer(u, w, which=slice(None)):
        out = (x[which] @ w["a"].unsqueeze(-1)).squeeze(-1) - w["b"]
        return out.cos().mean(-1) + (u["shared"] * u["own"] * w["a"]).sum(-1)

    return inner, outer, u, {"a": normal(count, 3), "b": normal(count, 1)}


@pytest.mark.parametrize("method", NAMES)
def test_a_task_axis_equals_a_loop_over_tasks(method):
    inner, outer, u, start = tasks()
    solver = SGD(1 if method == "finite-difference" else 4, 0.1, proximal=0.0 if method == "soba" else 0.2)
    if method == "reptile":
        u = {"own": u["own"], "shared": u["shared"]}
        w0 = lambda u: {"a": u["own"] + u["shared"], "b": start["b"]}  # noqa: E731
    else:
        w0 = start
    together = hypergradient(outer, inner, u, w0, solver, method, task_axis=True)
    alone = [
        hypergradient(
            lambda u, w, t=t: outer(u, w, t),
            lambda u, w, t=t: inner(u, w, t),
            {"shared": u["shared"], "own": u["own"][t]},
            (lambda v, t=t: {"a": v["own"] + v["shared"], "b": start["b"][t]})
            if method == "reptile"
            else {name: value[t] for name, value in start.items()},
            solver,
            method,
        )
        for t in range(3)
    ]
    expected = {
        "shared": sum(a.grads["shared"] for a in alone) / 3,
        "own": torch.stack([a.grads["own"] for a in alone]) / 3,
    }
    assert_close(together.grads, expected, 1e-8)  # CG and the differences: roundings that are amplified
    torch.testing.assert_close(together.log["values"], torch.stack([a.value for a in alone]))
    torch.testing.assert_close(together.value, sum(a.value for a in alone) / 3)
    for name in start:
        torch.testing.assert_close(together.w[name], torch.stack([a.w[name] for a in alone]))


def mlp(seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, y, xv, yv = normal(8, 3), normal(8, 2), normal(8, 3), normal(8, 2)

    def forward(w, x):
        return torch.tanh(x @ w["w1"] + w["b1"]) @ w["w2"]

    def inner(u, w):
        return (u["weights"].softmax(0) * (forward(w, x) - y).square().sum(1)).sum() + u["penalty"].exp() * (
            w["w1"].square().sum() + w["w2"].square().sum()
        )

    def outer(u, w):
        return (forward(w, xv) * u["scale"] - yv).square().mean()

    u = {
        "weights": normal(8),
        "penalty": normal(1)[0],
        "scale": normal(1)[0],
        "start": normal(3, 4),
        "rate": normal(1)[0] / 10,
    }
    fixed = {"b1": normal(4), "w2": normal(4, 2)}
    return inner, outer, u, lambda u: {"w1": u["start"], **fixed}


@pytest.mark.parametrize("method", REACH_ALL, ids=repr)
def test_finite_differences_of_the_value_on_a_small_mlp(method):
    """Central differences of the whole inner solve, step 1e-6: error about 1e-9 of the curvature."""
    inner, outer, u, start = mlp()
    solver = SGD(4, lambda u: 0.1 * u["rate"].exp())
    found = hypergradient(outer, inner, u, start, solver, method)

    def value(v):
        return outer(v, solve(inner, v, start, solver)).item()

    for name, entry in u.items():
        ramp = torch.linspace(-1, 1, max(entry.numel(), 2), dtype=torch.float64)
        direction = ramp[: entry.numel()].view_as(entry)
        up, down = ({**u, name: entry + sign * 1e-6 * direction} for sign in (1, -1))
        slope = (value(up) - value(down)) / 2e-6
        assert (found.grads[name] * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("method", NAMES)
def test_data_reach_both_levels_and_aux_comes_back(method):
    q = quadratic(4, 3.0, seed=0)
    u = {name: q.u[name] for name in (("t",) if method == "reptile" else ("c", "s", "d"))}
    if method == "first-order":
        u = {"d": q.u["d"]}
    if method == "envelope":
        u = {"d": q.u["d"]}
    rest = {name: value for name, value in q.u.items() if name not in u}
    start = (lambda v: {"w": q.P @ v["t"]}) if method == "reptile" else {"w": q.P @ q.u["t"]}
    steps = 1 if method == "finite-difference" else 3

    def inner(v, w, scale):
        return scale * q.inner({**rest, **v}, w)

    def outer(v, w, shift):
        return q.outer({**rest, **v}, w) + shift, {"length": w["w"].norm(), "count": 7}

    one = hypergradient(outer, inner, u, start, SGD(steps, 0.5), method, data=(1.5, 2.0), has_aux=True)
    listed = hypergradient(
        outer, inner, u, start, SGD(steps, 0.5), method, data=([1.5] * steps, 2.0), has_aux=True
    )
    bare = hypergradient(
        lambda v, w: outer(v, w, 2.0)[0], lambda v, w: inner(v, w, 1.5), u, start, SGD(steps, 0.5), method
    )
    assert_close(one.grads, bare.grads, 1e-13)
    assert_close(listed.grads, bare.grads, 1e-13)
    torch.testing.assert_close(one.value, bare.value)
    at = start if method == "soba" else one.w  # it asks before its step
    torch.testing.assert_close(one.aux["length"], at["w"].norm())
    assert one.aux["count"] == 7
    assert not one.aux["length"].requires_grad
    assert bare.aux == {}


@pytest.mark.parametrize("method", REACH_ALL, ids=repr)
def test_each_step_sees_its_own_batch(method):
    u, start = {"c": torch.tensor(2.0, dtype=torch.float64)}, {"x": torch.zeros((), dtype=torch.float64)}
    found = hypergradient(
        lambda u, w, batch: w["x"],
        lambda u, w, scale: scale * (w["x"] - u["c"]).square() / 2,
        u, start, SGD(3, 0.5), method, data=([1.0, 0.5, 0.2], None),
    )  # fmt: skip
    assert found.grads["c"].item() == pytest.approx(1 - 0.5 * 0.75 * 0.9, rel=1e-12)


def test_the_wrong_number_of_batches_is_refused():
    q = quadratic(3, 3.0, seed=0)
    start = {"w": q.P @ q.u["t"]}
    u = {name: q.u[name] for name in ("c", "s", "d")}

    def run(count, method):
        inner = lambda u, w, batch: q.inner(u, w)  # noqa: E731
        return hypergradient(
            lambda u, w, batch: q.outer(u, w),
            inner,
            u,
            start,
            SGD(3, 0.5),
            method,
            data=([None] * count, None),
        )

    for count in (0, 1, 2, 4):
        with pytest.raises(ValueError, match="list of"):
            run(count, "unroll")
    run(2, "cg")  # implicit engines repeat the last
    for count in (0, 4):
        with pytest.raises(ValueError, match="list of"):
            run(count, "cg")


@pytest.mark.parametrize(
    "method", [name for name in NAMES if name not in ("reptile", "first-order", "envelope")]
)
def test_steps_zero_is_legal(method):
    q = quadratic(4, 3.0, seed=0)
    u, start = {name: q.u[name] for name in ("c", "s", "d")}, {"w": q.P @ q.u["t"]}
    found = hypergradient(q.outer, q.inner, u, start, SGD(0, 0.5), method)
    assert_close(found.w, start, 1e-15)
    if method in ("unroll", "recompute", "truncated", "forward", "finite-difference"):
        assert not found.grads["c"].any()  # a true zero: no step, so F does not depend on c
        assert_close({"d": found.grads["d"]}, {"d": start["w"] + q.u["d"]}, 1e-13)


def good():
    return {
        "outer": lambda u, w: (w["x"] * u["c"]).sum(),
        "inner": lambda u, w: (w["x"] - u["c"]).square().sum(),
        "u": {"c": torch.tensor(1.0)},
        "w0": {"x": torch.zeros(2)},
        "solver": SGD(1, 0.1),
    }


def test_a_method_may_be_a_function_of_the_problem():
    def constant(problem: Problem) -> Result:
        zeros = {name: torch.zeros_like(value) for name, value in problem.u.items()}
        return Result(torch.tensor(0.0), zeros, dict(problem.w0))

    found = hypergradient(**good(), method=constant)
    assert found.grads == {"c": torch.tensor(0.0)}


def test_names_resolve_through_the_package():
    assert mp.hypergradient is hypergradient
    assert mp.Problem is Problem
    assert mp.Result is Result
    assert mp.hypergradients.CG is CG

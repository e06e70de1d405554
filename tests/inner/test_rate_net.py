"""Rates and decay from a net: by its formula in loops, from gradient descent on, and its hypergradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft import inner as mi
from metapeft.hypergradients import Recompute, hypergradient
from tests.inner.problems import curved
from tests.learner.helpers import images, learner_of


def learned(
    start: dict[str, Tensor], steps: int = 3, seed: int = 0, **options: Any
) -> tuple[mi.RateNet, Any]:
    """A solver, and random values of what it learns."""
    solver, random = mi.RateNet(steps, 0.2, hidden=5, **options), torch.Generator().manual_seed(seed)
    shapes = solver.rates(start)
    return solver, {
        n: 0.4 * torch.randn(v.shape, generator=random, dtype=torch.float64) for n, v in shapes.items()
    }


def by_hand(solver: mi.RateNet, rates: dict[str, Tensor], inner: Any, u: Any, w: dict[str, Tensor]) -> Any:
    """One task's steps, a number at a time."""
    names = sorted(w)
    for k in range(solver.steps):
        leaves = {n: v.detach().requires_grad_() for n, v in w.items()}
        grads = dict(zip(names, torch.autograd.grad(inner(u, leaves), [leaves[n] for n in names])))
        tau = torch.stack([value[n].mean() for value in (grads, w) for n in names])
        tau = (tau - tau.mean()) / (tau.var(correction=0) + 1e-5).sqrt()
        hidden = torch.relu(rates["rates.net.hidden.weight"] @ tau + rates["rates.net.hidden.bias"])
        out = rates["rates.net.out.weight"] @ hidden + rates["rates.net.out.bias"][min(k, solver.steps - 1)]
        factor = (solver.bound * torch.tanh(out / solver.bound)).exp()
        w = {n: factor[len(names) + i] * w[n] - solver.lr * factor[i] * grads[n] for i, n in enumerate(names)}
    return w


@pytest.mark.parametrize("tasks", [None, 3])
def test_the_formula(tasks: int | None) -> None:
    inner, _, u, start = curved(seed=2, tasks=tasks)
    solver, rates = learned(start)
    found = mi.solve(inner, {**u, **rates}, start, solver, task_axis=tasks is not None)
    for t in range(tasks or 1):
        if tasks is None:
            expected = by_hand(solver, rates, inner, u, start)
        else:  # the others stay as they are, and no task reads another

            def one(u: Any, w: Any, t: int = t) -> Tensor:
                whole = {n: torch.cat([start[n][:t], w[n][None], start[n][t + 1 :]]) for n in w}
                return inner(u, whole)[t]

            expected = by_hand(solver, rates, one, u, {n: v[t] for n, v in start.items()})
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name] if tasks is None else found[name][t], value, rtol=1e-9, atol=1e-12
            )


def test_it_starts_as_gradient_descent() -> None:
    inner, _, u, start = curved(seed=1)
    solver = mi.RateNet(4, 0.2)
    found = mi.solve(inner, {**u, **solver.rates(start)}, start, solver)
    expected = mi.solve(inner, u, start, mi.SGD(4, 0.2))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)


def test_hypergradients_are_those_of_finite_differences() -> None:
    inner, outer, u, start = curved(seed=1)
    solver, rates = learned(start)
    every = {**u, **rates}
    found = hypergradient(outer, inner, every, start, solver, "unroll")
    for name, entry in every.items():
        direction = torch.linspace(0.5, 1, max(entry.numel(), 1), dtype=torch.float64).view_as(entry)
        up, down = (
            outer(moved, mi.solve(inner, moved, start, solver)).item()
            for sign in (1, -1)
            for moved in ({**every, name: entry + sign * 1e-6 * direction},)
        )
        slope = (up - down) / 2e-6
        assert (found.grads[name] * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8)
    again = hypergradient(outer, inner, every, start, solver, Recompute(2))
    for name in every:
        torch.testing.assert_close(again.grads[name], found.grads[name], rtol=1e-9, atol=1e-12)


def test_in_a_learner(tmp_path: Any) -> None:
    """Learned with W0, kept in a run, more steps at test; factors without entries play no part."""
    learner, body = learner_of(
        "cp", inner=mi.RateNet(2, 0.1), head="prototype-init", outer=("weights", "rates")
    )
    batch = images()
    found = learner.hypergradient(batch).grads
    assert found["rates.net.out.weight"].any()
    assert found["rates.net.out.bias"].any()
    assert not found["rates.net.hidden.weight"].any()  # behind weights that start at 0
    mp.save(learner, tmp_path / "run")
    again = mp.load(tmp_path / "run", backbone=body)
    for one in (learner, again):
        one.many = one.adapt_many(batch.support_x, batch.support_y, steps=5)(batch.query_x)  # type: ignore[attr-defined]
    assert torch.equal(learner.many, again.many)  # type: ignore[attr-defined]
    none = mp.Learner(
        mp.attach(body, mp.CP(0, shift=True)), mi.RateNet(2, 0.1), outer=("rates",), head="prototype-init"
    )
    assert none.hypergradient(batch).value.isfinite()


def test_what_it_refuses() -> None:
    inner, outer, u, start = curved(seed=1)
    solver, rates = learned(start)
    with pytest.raises(ValueError, match="is missing"):
        mi.solve(inner, u, start, solver)
    with pytest.raises(ValueError, match="of other variables"):
        mi.solve(inner, {**u, **rates}, {"a": start["a"]}, solver)
    with pytest.raises(ValueError, match="minimises no objective"):
        hypergradient(outer, inner, {**u, **rates}, start, solver, "cg")
    for wrong in ({"steps": -1}, {"hidden": 0}, {"bound": 0.0}, {"lr": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            mi.RateNet(**{"steps": 1, "lr": 0.1, **wrong})  # type: ignore[arg-type]

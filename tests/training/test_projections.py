"""Outer variables that are projected after each outer step: closed forms, and projected gradients by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

import metapeft as mp
from tests.training.helpers import learner, sampler, trainer

Box, Simplex, Ball = mp.inner.Box, mp.inner.Simplex, mp.inner.Ball
F64 = torch.float64


@given(seed=st.integers(0, 1000), size=st.integers(1, 7), total=st.sampled_from([0.3, 1.0, 5.0]))
@settings(max_examples=40, deadline=None)
def test_the_simplex_by_its_optimality_conditions(seed: int, size: int, total: float) -> None:
    """`(x - p) . (q - p) <= 0` for every corner q: that, and lying in the set, is what the nearest point is."""
    x = 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    p = Simplex(total)(x)
    assert bool((p >= 0).all())
    assert float(p.sum()) == pytest.approx(total, rel=1e-12)
    corners = total * torch.eye(size, dtype=F64)
    assert bool((((x - p) * (corners - p)).sum(-1) <= 1e-12).all())


def test_the_simplex_by_another_solver() -> None:
    x = torch.tensor([0.9, -0.2, 0.7, 0.1], dtype=F64)
    found = minimize(
        lambda p: ((p - x.numpy()) ** 2).sum(), [0.25] * 4, bounds=[(0, None)] * 4,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1}, tol=1e-12,
    )  # fmt: skip
    torch.testing.assert_close(Simplex()(x), torch.tensor(found.x, dtype=F64), rtol=0, atol=1e-6)


def test_rows_boxes_and_balls() -> None:
    x = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 9.0]], dtype=F64)
    assert torch.equal(Simplex(dim=1)(x), torch.stack([Simplex()(row) for row in x]))
    assert torch.equal(Simplex(dim=0)(x), torch.stack([Simplex()(row) for row in x.T]).T)
    assert Simplex()(x).shape == x.shape
    assert Box(0.5, 2)(x).tolist() == [[2.0, 1.0, 0.5], [0.5, 0.5, 2.0]]
    assert Box(high=1)(torch.tensor(3.0)).item() == 1.0
    assert torch.equal(Ball(100.0)(x), x)
    assert float(Ball(2.0)(x).norm()) == pytest.approx(2.0)
    assert torch.equal(Ball()(0 * x), 0 * x)


def outer(u: dict[str, Tensor], w: dict[str, Tensor]) -> Tensor:
    """`||x - a||^2 / 2`, where x goes from 0 half of the way to c at each inner step."""
    a = torch.tensor([0.9, 0.2, -0.4], dtype=F64)
    return (w["x"] - a).square().sum() / 2 + (u["d"] - 3).square().sum()


def inner(u: dict[str, Tensor], w: dict[str, Tensor]) -> Tensor:
    return (w["x"] - u["c"]).square().sum() / 2


def problem() -> mp.Problem:
    u = {"c": torch.full((3,), 1 / 3, dtype=F64), "d": torch.zeros(2, dtype=F64)}
    return mp.Problem(outer, inner, u, {"x": torch.zeros(3, dtype=F64)}, mp.inner.SGD(2, 0.5))


def test_a_problem_ends_at_the_closed_form() -> None:
    """After two steps x = 3/4 c, so that c is the point of the simplex nearest to 4/3 a; d is cut at 2."""
    own = mp.BilevelTrainer(
        problem(), torch.optim.SGD, lr=0.4, progress=False, projections={"c": Simplex(), "d": Box(high=2.0)}
    )
    own.fit(None, steps=200)
    a = torch.tensor([0.9, 0.2, -0.4], dtype=F64)
    torch.testing.assert_close(own.learner.trained["c"], Simplex()(4 / 3 * a), rtol=0, atol=1e-12)
    assert own.learner.trained["d"].tolist() == [2.0, 2.0]


def test_each_step_of_a_problem_by_hand() -> None:
    own = mp.BilevelTrainer(
        problem(), torch.optim.SGD, lr=0.4, progress=False, projections={"*": Ball(0.5), "c": Simplex()}
    )
    c, d = torch.full((3,), 1 / 3, dtype=F64), torch.zeros(2, dtype=F64)
    a = torch.tensor([0.9, 0.2, -0.4], dtype=F64)
    for steps in range(1, 4):
        c = Simplex()(c - 0.4 * 0.75 * (0.75 * c - a))
        d = Ball(0.5)(d - 0.4 * 2 * (d - 3))
        own.fit(None, steps=1) if steps == 1 else own.loop.outer_step(None)
        torch.testing.assert_close(own.learner.trained["c"], c, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(own.learner.trained["d"], d, rtol=1e-12, atol=1e-14)


def test_a_learner_by_hand(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {
        "rates.*": Box(0.049, 0.051),
        "weights.conv1.weight": Ball(0.1),
        "weights.*": lambda value: value,
    }
    options: dict[str, Any] = {
        "optimizer": torch.optim.SGD,
        "lr": 0.5,
        "schedule": None,
        "clip": None,
        "chunk": 4,
    }
    free, own = trainer(learner(), **options), trainer(learner(), projections=chosen, **options)
    free.fit(sampler(), 1)
    own.fit(sampler(), 1, run_dir=tmp_path / "run")
    assert any(name.startswith("rates.") for name in own.learner.trained)
    for name, value in free.learner.trained.items():
        expected = value.clamp(0.049, 0.051) if name.startswith("rates.") else value
        if name != "weights.conv1.weight":
            assert torch.equal(own.learner.trained[name], expected), name
    with pytest.raises(ValueError, match=r"trainer\.projections"):
        trainer(learner(), **options).resume(tmp_path / "run")
    assert own.settings()["projections"]["rates.*"] == {
        "name": "Box",
        "fields": {"low": 0.049, "high": 0.051},
    }
    assert "projections" not in free.settings()


def test_refusals() -> None:
    for given_ones, message in (
        (
            {"e": Simplex()},
            "projections names 'e', which is no outer variable that is trained: there are c, d",
        ),
        ({"c": Simplex}, r"projections\['c'\]=<class .*: a function of a tensor is needed"),
        (Simplex(), "projections is of type Simplex: a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            mp.BilevelTrainer(problem(), progress=False, projections=given_ones)  # type: ignore[arg-type]
    for function, message in (
        (lambda c: c.sum(), r"the projection of 'c' gave shape \(\): it has to give \(3,\)"),
        (lambda c: c / 0, "the projection of 'c' gave numbers that are not finite"),
    ):
        own = mp.BilevelTrainer(problem(), progress=False, projections={"c": function})
        with pytest.raises(ValueError, match=message):
            own.fit(None, steps=1)
    for make, message in (
        (lambda: Box(), "at least one bound is needed"),
        (lambda: Box(2, 1), "low=2, high=1"),
        (lambda: Simplex(0), "total=0: allowed is a finite number above 0"),
        (lambda: Ball(-1), "radius=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()

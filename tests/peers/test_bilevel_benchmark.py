"""The bilevel benchmark's ridge regression with a learned penalty of each weight, and its solvers' own steps.

Source: benchopt/benchmark_bilevel: benchmark_utils/oracles/ridge.py (`reg="exp"`), objective.py (starts, the
measure), solvers/soba.py and solvers/stocbio.py with benchmark_utils/hessian_approximation.py (`shia`). Their steps
are written here in numpy, in the order and with the signs that they have there; data as datasets/simulated.py, without
correlation. No package is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.hypergradients import SOBA, Exact, Neumann
from tests.hypergradients.quadratics import assert_close

pytestmark = pytest.mark.peers
SAMPLES, FEATURES, SIGMA = 1000, 10, 0.1
Array = np.ndarray


def data() -> dict[str, Array]:
    """Three quarters are for training, as `train_test_split` has it."""
    numbers = np.random.RandomState(0)
    x, theta = numbers.randn(SAMPLES, FEATURES), numbers.randn(FEATURES)
    y, order = x @ theta + SIGMA * numbers.randn(SAMPLES), numbers.permutation(SAMPLES)
    parts = {"test": order[: SAMPLES // 4], "train": order[SAMPLES // 4 :]}
    return {f"{n}_{part}": v[at] for n, v in (("x", x), ("y", y)) for part, at in parts.items()}


DATA = data()
numbers = np.random.RandomState(2442)
START = numbers.randn(FEATURES), np.log(numbers.rand(FEATURES))  # its inner and outer variables
PIECES = {name: torch.from_numpy(value) for name, value in DATA.items()}


class Ridge:
    """Its oracle: `1/(2n) |X z - y|^2`, and `1/2 z' (exp(x) z)` where it is regularised."""

    def __init__(self, part: str, regularised: bool) -> None:
        self.x, self.y, self.on = DATA[f"x_{part}"], DATA[f"y_{part}"], regularised

    def grad_inner(self, z: Array, lam: Array, at: Any) -> Array:
        x = self.x[at]
        return x.T @ (x @ z - self.y[at]) / len(x) + (np.exp(lam) * z if self.on else 0.0)

    def hvp(self, z: Array, lam: Array, v: Array, at: Any) -> Array:
        x = self.x[at]
        return x.T @ (x @ v) / len(x) + (np.exp(lam) * v if self.on else 0.0)

    def cross(self, z: Array, lam: Array, v: Array) -> Array:
        return np.exp(lam) * z * v


TRAIN, TEST = Ridge("train", True), Ridge("test", False)
EVERYTHING = slice(None)


def inner(u: Any, w: Any, at: Any) -> Tensor:
    x, y = PIECES["x_train"][at], PIECES["y_train"][at]
    return (x @ w["z"] - y).square().mean() / 2 + (u["lam"].exp() * w["z"].square()).sum() / 2


def outer(u: Any, w: Any, at: Any) -> Tensor:
    return (PIECES["x_test"][at] @ w["z"] - PIECES["y_test"][at]).square().mean() / 2


def problem(solver: Any, method: Any) -> mp.Problem:
    z, lam = (torch.from_numpy(value) for value in START)
    return mp.Problem(outer, inner, {"lam": lam}, {"z": z}, solver, method)


class Draws:
    """Minibatches of 64, or everything: `inner` so many for an outer step (a bare one for 0), one of the test data."""

    def __init__(self, inner: int = 0, full: bool = False) -> None:
        self.inner, self.full = inner, full

    def batch(self, start: int, count: int) -> Any:
        if self.full:
            return ([EVERYTHING] * self.inner if self.inner else EVERYTHING), EVERYTHING
        numbers = np.random.RandomState(start)
        own = [numbers.randint(0, len(TRAIN.x), 64) for _ in range(max(self.inner, 1))]
        return (own if self.inner else own[0]), numbers.randint(0, len(TEST.x), 64)


def trained(task: mp.Problem, lr: float, draws: Draws, steps: int) -> mp.BilevelTrainer:
    trainer = mp.BilevelTrainer(
        task, torch.optim.SGD, lr=lr, warm_start=True, tasks_per_step=1, progress=False
    )
    trainer.fit(draws, steps=steps)
    return trainer


def test_the_measure() -> None:
    """Squared norm of the value function's gradient, `- cross(H^-1 grad F)` at the inner solution."""
    _, lam = START
    system = TRAIN.x.T @ TRAIN.x / len(TRAIN.x) + np.diag(np.exp(lam))
    z = np.linalg.solve(system, TRAIN.x.T @ TRAIN.y / len(TRAIN.x))
    expected = -TRAIN.cross(z, lam, np.linalg.solve(system, TEST.grad_inner(z, lam, EVERYTHING)))
    task = problem(mp.inner.SGD(0, 0.1), Exact())
    found = mp.hypergradient(
        outer, inner, task.u, {"z": torch.from_numpy(z)}, task.solver, Exact(), data=(EVERYTHING, EVERYTHING)
    )
    np.testing.assert_allclose(found.grads["lam"].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("full", [True, False])
def test_soba(full: bool) -> None:
    """Its three updates of one iteration, all from the same point, with a step of 0.1 and one of 1 outside."""
    draws, step, outer_step = Draws(full=full), 0.1, 1.0
    z, lam = (value.copy() for value in START)
    v = np.zeros(FEATURES)
    for k in range(60):
        inner_slice, outer_slice = draws.batch(k, 1)
        grad_inner_var = TRAIN.grad_inner(z, lam, inner_slice)
        hvp, cross_v = TRAIN.hvp(z, lam, v, inner_slice), TRAIN.cross(z, lam, v)
        grad_in_outer = TEST.grad_inner(z, lam, outer_slice)
        z = z - step * grad_inner_var
        v = v - step * (hvp + grad_in_outer)
        lam = lam - outer_step * cross_v
    trainer = trained(problem(mp.inner.SGD(1, step), SOBA(step)), outer_step, draws, 60)
    assert_close(trainer.learner.trained, {"lam": torch.from_numpy(lam)}, 1e-10)
    assert_close(dict(trainer.inner), {"z": torch.from_numpy(z)}, 1e-10)
    assert_close(trainer.inner.state["hypergradient"], {"z": torch.from_numpy(-v)}, 1e-10)


@pytest.mark.parametrize("full", [True, False])
def test_stocbio(full: bool) -> None:
    """Ten inner steps; ten iterations of `shia`, each on a batch of its own; the cross product on one more."""
    count, step, outer_step = 10, 0.1, 1.0
    draws = Draws(inner=count + count + 1, full=full)
    z, lam = (value.copy() for value in START)
    for k in range(20):
        batches, outer_slice = draws.batch(k, 1)
        for at in batches[:count]:
            z = z - step * TRAIN.grad_inner(z, lam, at)
        v = TEST.grad_inner(z, lam, outer_slice)
        total = v.copy()
        for at in batches[count : 2 * count]:
            v = v - step * TRAIN.hvp(z, lam, v, at)
            total = total + v
        lam = lam + outer_step * TRAIN.cross(z, lam, step * total)
    task = problem(mp.inner.SGD(count, step), Neumann(count + 1, step, fresh=True))
    trainer = trained(task, outer_step, draws, 20)
    assert_close(trainer.learner.trained, {"lam": torch.from_numpy(lam)}, 1e-10)
    assert_close(dict(trainer.inner), {"z": torch.from_numpy(z)}, 1e-10)


def test_soba_lowers_the_measure() -> None:
    """Of full batches, from its starts, against the same number of outer steps with the exact derivative."""

    def value(lam: Tensor) -> float:
        system = TRAIN.x.T @ TRAIN.x / len(TRAIN.x) + np.diag(np.exp(lam.numpy()))
        z = np.linalg.solve(system, TRAIN.x.T @ TRAIN.y / len(TRAIN.x))
        return float(np.square(TEST.x @ z - TEST.y).mean() / 2)

    before = value(torch.from_numpy(START[1]))
    soba = trained(problem(mp.inner.SGD(1, 0.3), SOBA(0.3)), 1.0, Draws(full=True), 150)
    exact = trained(problem(mp.inner.SGD(40, 0.3), Exact()), 1.0, Draws(full=True), 150)
    values = [value(one.learner.trained["lam"]) for one in (soba, exact)]
    assert values[0] < before / 5
    assert values[0] == pytest.approx(values[1], rel=0.05)

"""SOBA's running solution: closed forms on a quadratic problem, where it ends, how it is kept and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.hypergradients import SOBA, Exact, hypergradient
from metapeft.inner import SGD, FixedPoint, Momentum
from metapeft.inner.warm_start import WarmStart
from tests.hypergradients.quadratics import Quadratic, assert_close, quadratic
from tests.learner.helpers import images

LR = 0.7


def problem(seed: int = 0) -> tuple[Quadratic, dict[str, Tensor], dict[str, Tensor]]:
    q = quadratic(5, 10.0, seed)
    return q, {key: q.u[key] for key in "csd"}, q.start(q.u)


def test_the_recursion_of_the_linear_solution_in_closed_form() -> None:
    """`q_{t+1} = (I - lr H) q_t + lr g(w_t)`, so `q_t = lr sum_{j<t} (I - lr H)^(t-1-j) g(w_j)`, w_j known too."""
    q, u, w = problem()
    H = q.hessian(q.u)
    eye = torch.eye(5).double()
    slopes = [q.iterate(q.u, j) - q.y + q.u["d"] for j in range(12)]
    for t in range(12):
        found = hypergradient(q.outer, q.inner, u, w, SGD(1, q.lr), SOBA(LR))
        at = q.iterate(q.u, t)
        powers = (LR * torch.linalg.matrix_power(eye - LR * H, t - 1 - j) @ slopes[j] for j in range(t))
        running = sum(powers, torch.zeros(5).double())
        expected = {"c": q.B.T @ running, "s": -at @ running, "d": at + q.u["d"]}
        assert_close(found.grads, expected, 1e-11)
        torch.testing.assert_close(found.value, q.outer(q.u, {"w": at}))
        torch.testing.assert_close(
            found.residual, (slopes[t] - H @ running).norm() / slopes[t].norm(), rtol=1e-9, atol=1e-12
        )
        torch.testing.assert_close(found.w["w"], q.iterate(q.u, t + 1))
        assert isinstance(found.w, WarmStart)
        w = found.w


def test_at_rest_it_is_the_implicit_derivative() -> None:
    q, u, w = problem(seed=1)
    for _ in range(320):
        found = hypergradient(q.outer, q.inner, u, w, SGD(1, q.lr), SOBA(q.lr))
        w = found.w
    exact = hypergradient(q.outer, q.inner, u, dict(w), SGD(0, q.lr), Exact())
    assert_close(found.grads, exact.grads, 1e-9)
    assert found.residual < 1e-9


def trained(steps: int, solver: Any = None, **options: Any) -> mp.BilevelTrainer:
    q, u, w = problem()
    task = mp.Problem(q.outer, q.inner, u, w, SGD(1, q.lr) if solver is None else solver, SOBA(LR))
    trainer = mp.BilevelTrainer(task, torch.optim.SGD, lr=0.01, warm_start=True, progress=False)
    trainer.fit(None, steps=steps, **options)
    return trainer


def test_the_trainer_takes_all_three_steps_at_once() -> None:
    """`z -= r grad f`, `v -= r (H v + grad_z F)`, `x -= g (grad_x F + d2f/dxdz v)`, all at the same (z, v, x)."""
    q, x, z = problem()
    z, v = z["w"], torch.zeros(5).double()
    for _ in range(30):
        H = q.hessian(x)
        slope = H @ z - q.B @ x["c"]
        direction = {"c": -q.B.T @ v, "s": z @ v, "d": z + x["d"]}
        upper = z - q.y + x["d"]
        z, v = z - q.lr * slope, v - LR * (H @ v + upper)
        x = {name: value - 0.01 * direction[name] for name, value in x.items()}
    trainer = trained(30)
    assert_close(trainer.learner.trained, x, 1e-11)
    torch.testing.assert_close(trainer.inner["w"], z, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(trainer.inner.state["hypergradient"]["w"], -v, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("solver", [SGD(1, 0.9), Momentum(1, 0.1, momentum=0.5)], ids=repr)
def test_checkpoints_keep_it(solver: Any, tmp_path: Path) -> None:
    """Stopped and resumed bit for bit, with a solver that has a state of its own beside it."""
    whole = trained(20, solver, run_dir=tmp_path / "whole")
    trained(20, solver, run_dir=tmp_path / "cut", stop_at=7)
    again = trained(1, solver)
    again.resume(tmp_path / "cut")
    assert set(again.inner.state) == set(whole.inner.state)
    for name, value in whole.learner.trained.items():
        assert torch.equal(value, again.learner.trained[name])
    kept, resumed = (one.inner.state["hypergradient"]["w"] for one in (whole, again))
    assert torch.equal(kept, resumed)
    assert kept.norm() > 0


def test_it_reaches_the_minimum_of_a_problem_with_batches() -> None:
    """`min_c E (w*(c) - y)^2 / 2` with `f = E (w - a c)^2 / 2`: at `c = E y / E a`; batches have other a and y."""
    numbers = torch.Generator().manual_seed(0)
    a, y = (1 + 0.2 * torch.randn(64, generator=numbers, dtype=torch.float64) for _ in range(2))

    class Batches:
        def batch(self, start: int, count: int) -> Any:
            at = torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(start))
            return a[at[0]], y[at[1]]

    task = mp.Problem(
        lambda u, w, y: (w["w"] - y).square().mean() / 2,
        lambda u, w, a: (w["w"] - a * u["c"]).square().mean() / 2,
        {"c": torch.tensor(3.0).double()},
        {"w": torch.tensor(0.0).double()},
        SGD(1, 0.5),
        SOBA(0.5),
    )
    trainer = mp.BilevelTrainer(
        task, torch.optim.SGD, lr=0.1, schedule="cosine", warm_start=True, progress=False, tasks_per_step=1
    )
    trainer.fit(Batches(), steps=200)
    assert trainer.learner.trained["c"].item() == pytest.approx((y.mean() / a.mean()).item(), abs=0.02)


def test_a_learner_goes_on_with_it() -> None:
    """The same tasks at every step, as published LoRA-ML has them; a batch of other sizes is refused."""
    batch = images()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double()

    class Same:
        def batch(self, start: int, count: int) -> mp.EpisodeBatch:
            return batch

    learner = mp.methods.maml(net, inner=SGD(1, 0.1), norm="running", hypergradient=SOBA(0.1))
    trainer = mp.BilevelTrainer(
        learner, torch.optim.SGD, lr=0.0, warm_start=True, tasks_per_step=2, progress=False
    )
    trainer.fit(Same(), steps=3)
    kept = trainer.inner.state["hypergradient"]
    assert {name: value.shape for name, value in kept.items()} == {
        n: v.shape for n, v in trainer.inner.items()
    }
    w = learner.hypergradient(batch).w
    for _ in range(2):
        w = learner.hypergradient(batch, WarmStart(w, w.state)).w
    for name, value in kept.items():
        torch.testing.assert_close(w.state["hypergradient"][name], value)
    other = WarmStart({n: v[:1] for n, v in w.items()}, w.state)
    with pytest.raises(ValueError, match=r"w0 was kept for other inner variables"):
        learner.hypergradient(batch.tasks(slice(0, 1)), other)
    assert learner.adapt(batch.support_x[0], batch.support_y[0], steps=0, w0=w.task(0)).ways == 3


def test_what_it_refuses() -> None:
    q, u, w = problem()
    with pytest.raises(ValueError, match=r"lr=0"):
        SOBA(0)
    with pytest.raises(ValueError, match=r"FixedPoint uses no inner gradients"):
        hypergradient(q.outer, None, u, w, FixedPoint(lambda u, w: w, steps=1), SOBA())
    with pytest.raises(ValueError, match=r"a proximal term would be about another point"):
        hypergradient(q.outer, q.inner, u, w, SGD(1, 0.1, proximal=1.0), SOBA())
    with pytest.raises(ValueError, match=r"u\['t'\].*every step starts from where the last one ended"):
        hypergradient(q.outer, q.inner, q.u, q.start, SGD(1, 0.1), SOBA())
    cold = mp.Problem(q.outer, q.inner, u, w, SGD(1, 0.1), SOBA())
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    for task in (cold, mp.methods.maml(net, norm="running", hypergradient="soba")):
        with pytest.raises(ValueError, match=r"goes on from what it kept.*say warm_start=True"):
            mp.BilevelTrainer(task)

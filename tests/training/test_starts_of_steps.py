"""Starts of inner variables that read the batch and the number of the outer step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.base.state import digest

F64 = torch.float64
SGD, ENGINES = mp.inner.SGD, mp.hypergradients


def inner(u: Any, w: Any, batch: Tensor) -> Tensor:
    return (w["x"] - u["c"] * batch).square().sum() / 2


def outer(u: Any, w: Any, batch: Tensor) -> Tensor:
    return (w["x"] - batch).square().sum() + 0.1 * u["c"].square().sum()


def start(u: Any, batch: Any, step: int) -> dict[str, Tensor]:
    return {"x": (step + 1) * u["c"] * batch[0].mean() + batch[1]}


class Batches:
    def batch(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(start)
        return torch.randn(3, generator=random, dtype=F64), torch.randn(3, generator=random, dtype=F64)


def problem(w0: Any = start, method: Any = "unroll", steps: int = 2) -> mp.Problem:
    u = {"c": torch.tensor([0.5, -1.0, 2.0], dtype=F64)}
    return mp.Problem(outer, inner, u, w0, SGD(steps, 0.1), method)


def trainer(**options: Any) -> mp.BilevelTrainer:
    given = {"optimizer": torch.optim.SGD, "lr": 0.05, "tasks_per_step": 1, "progress": False, **options}
    return mp.BilevelTrainer(problem(), **given)


def by_hand(steps: int) -> Tensor:
    c = torch.tensor([0.5, -1.0, 2.0], dtype=F64)
    for step in range(steps):
        first, second = Batches().batch(step, 1)
        u = c.clone().requires_grad_()
        x = (step + 1) * u * first.mean() + second
        for _ in range(2):
            x = x - 0.1 * (x - u * first)
        value = (x - second).square().sum() + 0.1 * u.square().sum()
        c = c - 0.05 * torch.autograd.grad(value, u)[0]
    return c


def test_outer_steps_by_hand_and_over_a_resume(tmp_path: Path) -> None:
    own = trainer()
    own.fit(Batches(), steps=5)
    torch.testing.assert_close(own.learner.trained["c"], by_hand(5), rtol=1e-12, atol=1e-14)
    first, second = trainer(), trainer()
    first.fit(Batches(), steps=5, run_dir=tmp_path / "run", stop_at=3, checkpoint_every=1)
    second.resume(tmp_path / "run", Batches())
    assert digest(second.learner.state()) == digest(own.learner.state())


METHODS: list[Any] = [
    "unroll", "recompute", ENGINES.Truncated(window=1), "forward", "first-order", "envelope", "reptile",
    "finite-difference", ENGINES.CG(damping=0.1), "exact", "neumann", "fixed-point", ENGINES.MultiStep(),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_engine_reads_the_batch(method: Any) -> None:
    data = Batches().batch(7, 1)
    steps = 1 if method == "finite-difference" else 2
    u = {"c": torch.tensor([0.5, -1.0, 2.0], dtype=F64)}
    found, expected = (
        mp.hypergradient(outer, inner, u, w0, SGD(steps, 0.1), method, data=data)
        for w0 in (lambda u, batch: start(u, batch, 1), lambda u: start(u, data, 1))
    )
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.grads["c"], expected.grads["c"])
    called = mp.resolve(method)(
        mp.Problem(outer, inner, u, lambda u, batch: start(u, batch, 1), SGD(steps, 0.1), data=data)
    )
    assert torch.equal(called.grads["c"], expected.grads["c"])
    own = mp.hypergradient(outer, inner, u, lambda u: start(u, data, 0), SGD(steps, 0.1), method, data=data)
    assert not torch.equal(own.value, found.value)


def test_warm_starts_take_it_once() -> None:
    seen: list[int] = []

    def noted(u: Any, step: int) -> dict[str, Tensor]:
        seen.append(step)
        return {"x": torch.zeros(3, dtype=F64)}

    own = mp.BilevelTrainer(problem(noted, "first-order"), warm_start=True, progress=False, tasks_per_step=1)
    own.fit(Batches(), steps=3)
    assert set(seen) == {0}


def test_an_engine_of_the_users_own_and_defaults() -> None:
    def engine(given: mp.Problem) -> mp.Result:
        return mp.Result(given.w0(given.u)["x"].sum(), {"c": torch.zeros(3, dtype=F64)}, {})

    with_default = lambda u, batch, step=10: start(u, batch, step)  # noqa: E731
    data = Batches().batch(0, 1)
    found = mp.hypergradient(outer, inner, problem().u, with_default, SGD(1, 0.1), engine, data=data)
    assert torch.equal(found.value, start(problem().u, data, 10)["x"].sum())
    own = mp.BilevelTrainer(problem(with_default, engine), torch.optim.SGD, progress=False, tasks_per_step=1)
    own.fit(Batches(), steps=1)
    assert own.loop.averages.sums == {}
    kept = lambda u, *args, **more: {"x": u["c"] + len(args) + len(more)}  # noqa: E731
    found = mp.hypergradient(outer, inner, problem().u, kept, SGD(1, 0.1), data=data)
    assert torch.equal(
        found.value,
        mp.hypergradient(outer, inner, problem().u, lambda u: {"x": u["c"]}, SGD(1, 0.1), data=data).value,
    )


def test_refusals() -> None:
    half = lambda u, w: (w["x"] - u["c"]).square().sum()  # noqa: E731
    with pytest.raises(ValueError, match="w0 asks for 'batch': data= is missing"):
        mp.hypergradient(half, half, problem().u, lambda u, batch: {"x": batch}, SGD(1, 0.1))
    with pytest.raises(
        ValueError, match="w0 asks for 'step': only the outer steps of a trainer are numbered"
    ):
        mp.hypergradient(half, half, problem().u, lambda u, step: {"x": u["c"] * step}, SGD(1, 0.1))

"""Outer steps without the inner loop before those with it, and an inner loop of no steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.generators import ClassEncoder
from tests.learner.helpers import images, learner_of


class Episodes:
    """Small batches of images, a pure function of their number."""

    def batch(self, start: int, count: int) -> Any:
        return images(tasks=count, seed=start)


def make(inner: Any = None, **options: Any) -> mp.Learner:
    outer = ("weights", "factors", "generator") + (("rates",) if options.pop("rates", False) else ())
    more = {
        "inner": inner,
        "head": "prototype-init",
        "generator": ClassEncoder(hidden=4),
        "outer": outer,
        **options,
    }
    learner, _ = learner_of("cp", **more)
    return learner


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-9, atol=1e-12)


def test_no_inner_steps_train_as_no_inner_loop() -> None:
    """The same values, gradients and batch statistics."""
    batch = images()
    none, zero = make(), make(mp.inner.SGD(0, 0.1))
    found, expected = zero.hypergradient(batch), none.hypergradient(batch)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-12, atol=0)
    same(dict(expected.grads), dict(found.grads))
    assert found.log["statistics"] or none.model.norm != "running"
    for name, parts in expected.log["statistics"].items():
        for a, b in zip(parts, found.log["statistics"][name]):
            torch.testing.assert_close(a, b)


def test_the_view_without_the_inner_loop() -> None:
    learner = make(mp.inner.SGD(2, 0.1, rates="step"), rates=True)
    view, plain = learner.without_inner(), make()
    plain.load_state(learner.state())
    same(dict(plain.hypergradient(images()).grads), dict(view.hypergradient(images()).grads))
    assert view.variables is learner.variables
    assert not any(name.startswith("rates.") for name in view.trained)
    assert learner.inner is not None
    assert learner.trained.keys() - view.trained.keys() == {
        n for n in learner.trained if n.startswith("rates.")
    }


def adapting() -> mp.Learner:
    return make(mp.inner.SGD(2, 0.1, rates="step"), rates=True, norm="support")


def test_steps_without_come_first(tmp_path: Path) -> None:
    """As training the view, then the learner, with one optimiser; stopped in either part it goes on bit for bit."""

    def trainer(learner: mp.Learner) -> mp.BilevelTrainer:
        return mp.BilevelTrainer(learner, lr=1e-2, tasks_per_step=2, direct_steps=2, progress=False)

    whole = adapting()
    trainer(whole).fit(Episodes(), 5)
    by_hand = adapting()
    optimizer = torch.optim.Adam([{"params": [value]} for value in by_hand.trained.values()], lr=1e-2)
    for step in range(5):
        task = by_hand.without_inner() if step < 2 else by_hand
        grads = task.hypergradient(Episodes().batch(2 * step, 2)).grads
        for name, value in by_hand.trained.items():
            value.grad = grads.get(name)
        optimizer.step()
    for name, value in whole.trained.items():
        torch.testing.assert_close(value, by_hand.trained[name], rtol=1e-9, atol=1e-12)
    for stop in (1, 2, 4):
        stopped, run = adapting(), tmp_path / f"run{stop}"
        trainer(stopped).fit(Episodes(), 5, run_dir=run, stop_at=stop)
        again = adapting()
        trainer(again).resume(run, Episodes())
        assert all(torch.equal(value, again.trained[name]) for name, value in whole.trained.items())
    with pytest.raises(ValueError, match="direct_steps"):
        mp.BilevelTrainer(adapting(), progress=False).resume(tmp_path / "run1", Episodes())


def test_without_effect() -> None:
    with pytest.raises(ValueError, match="no effect"):
        mp.BilevelTrainer(make(), direct_steps=2)
    with pytest.raises(ValueError, match="direct_steps"):
        mp.BilevelTrainer(make(mp.inner.SGD(1, 0.1)), direct_steps=-1)

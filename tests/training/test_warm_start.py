"""Inner variables that are kept between outer steps: the solver's state with them, in checkpoints, and in public."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.state import digest
from metapeft.hypergradients.implicit import NotConverged
from metapeft.inner.warm_start import Resumed, WarmStart
from metapeft.training.outer_loop import OuterLoop
from metapeft.training.runs import checkpoint
from tests.training.helpers import sampler

SOLVERS = {
    "adam": mp.inner.Adam(1, lr=0.1),
    "adamw": mp.inner.AdamW(1, lr=0.1, weight_decay=0.0),
    "momentum": mp.inner.Momentum(1, lr=0.1),
    "nesterov": mp.inner.Nesterov(1, lr=0.1),
    "sgd": mp.inner.SGD(1, lr=0.1),
    "proximal": mp.inner.SGD(1, lr=0.1, proximal=0.5),
    "lbfgs": mp.inner.LBFGS(1, lr=0.5),
}
TORCH: dict[str, Any] = {
    "adam": lambda w: torch.optim.Adam(w, lr=0.1),
    "adamw": lambda w: torch.optim.AdamW(w, lr=0.1, weight_decay=0.0),
    "momentum": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9),
    "nesterov": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True),
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
    "proximal": lambda w: torch.optim.SGD(w, lr=0.1),  # each run has its own anchor, so one step feels none
}


def bowl(solver: Any, method: str = "unroll") -> mp.BilevelTrainer:
    """Inner: (x - 3)^2 / 2 from 0, whatever the outer variable, which the outer objective alone reads."""
    half = lambda u, w: (w["x"] - 3).square() / 2 + 0 * u["c"]  # noqa: E731
    outer = lambda u, w: (w["x"] - u["c"]).square()  # noqa: E731
    u, w0 = {"c": torch.tensor(1.0)}, {"x": torch.tensor(0.0)}
    problem = mp.Problem(outer, half, u, w0, solver, method)
    return mp.BilevelTrainer(problem, torch.optim.SGD, lr=0.01, warm_start=True, progress=False)


@pytest.mark.parametrize("name", TORCH)
def test_ten_steps_are_those_of_one_optimizer(name: str) -> None:
    own = bowl(SOLVERS[name])
    own.fit(None, 10)
    x = torch.tensor(0.0, requires_grad=True)
    optimizer = TORCH[name]([x])
    for _ in range(10):
        optimizer.zero_grad()
        ((x - 3).square() / 2).backward()
        optimizer.step()
    assert own.inner is not None
    torch.testing.assert_close(own.inner["x"], x.detach(), rtol=1e-6, atol=0)
    if name == "adam":
        assert float(own.inner["x"]) == pytest.approx(0.9858, abs=5e-5)  # begun anew at each step: 1.0000


@pytest.mark.parametrize(
    "method", ["unroll", "recompute", "truncated", "forward", "first-order", "envelope", "exact"]
)
def test_every_engine_keeps_the_state(method: str) -> None:
    own = bowl(mp.inner.Adam(2, lr=0.1), method)
    with pytest.warns(NotConverged) if method == "exact" else nullcontext():
        own.fit(None, 5)
    assert own.inner is not None
    assert float(own.inner["x"]) == pytest.approx(0.9858, abs=5e-5)


def test_held_steps_keep_the_state() -> None:
    half = lambda u, w: (w["x"] - 3).square() / 2 + 0 * u["c"]  # noqa: E731
    problem = mp.Problem(half, half, {"c": torch.tensor(1.0)}, {"x": torch.tensor(0.0)}, SOLVERS["adam"])
    own = mp.BilevelTrainer(problem, lr=0.01, warm_start=True, inner_every=2, progress=False)
    own.fit(None, 19)
    assert own.inner is not None
    assert float(own.inner["x"]) == pytest.approx(0.9858, abs=5e-5)


def learner(solver: Any = None, engine: str = "envelope") -> mp.Learner:
    body = mp.backbones.conv4(ways=3, channels=1, width=4, size=16)
    return mp.methods.lora_ml(
        body, rank=2, inner=mp.inner.Adam(1, lr=0.05) if solver is None else solver, hypergradient=engine,
        inner_data="both", head="zero",
    )  # fmt: skip


def trainer(solver: Any = None, **options: Any) -> mp.BilevelTrainer:
    return mp.BilevelTrainer(learner(solver), tasks_per_step=4, warm_start=True, progress=False, **options)


class Same:
    """The same four tasks at every outer step."""

    def batch(self, start: int, count: int) -> Any:
        return sampler().batch(0, count)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_resumed_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = trainer(SOLVERS[name])
    whole.fit(Same(), 4)
    trainer(SOLVERS[name]).fit(Same(), 4, run_dir=tmp_path / "x", stop_at=2)
    again = trainer(SOLVERS[name])
    again.resume(tmp_path / "x", Same())
    assert digest(again.learner.state()) == digest(whole.learner.state())
    assert whole.inner is not None
    assert again.inner is not None
    assert digest(again.inner) == digest(whole.inner)
    assert (whole.inner.state or {}).keys() == (again.inner.state or {}).keys()


def test_an_old_checkpoint_begins_with_a_fresh_state_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer().fit(Same(), 6, run_dir=tmp_path / "x", stop_at=2)
    path = tmp_path / "x" / "checkpoints" / "latest.safetensors"
    tree, metadata = checkpoint.load(path)
    del tree["inner_state"]
    checkpoint.save(path, tree, metadata)
    again = trainer()
    with caplog.at_level(logging.WARNING, "metapeft"):
        again.resume(tmp_path / "x", Same())
    said = [record for record in caplog.records if "no state of the inner solver" in record.getMessage()]
    assert len(said) == 1
    assert again.inner is not None
    assert again.inner.state is not None
    assert again.inner.state["before"] == 4


def test_validation_scores_what_training_has(tmp_path: Path) -> None:
    """On the training tasks it is what the next step would see; a cold start is far below."""
    own = trainer(mp.inner.Adam(1, lr=0.02))
    log = own.fit(Same(), 30, Same(), tmp_path / "x", validate_every=30, validation_episodes=4, log_every=1)
    assert own.inner is not None
    cold = mp.evaluate(own.learner, Same(), 4)
    warm = mp.evaluate(own.learner, Same(), 4, w0=own.inner)
    assert log[-1]["validation_accuracy"] == pytest.approx(warm.accuracy)
    assert warm.accuracy > cold.accuracy + 0.2
    assert warm.loss < 0.7 * cold.loss
    as_it_is = mp.evaluate(own.learner, Same(), 4, steps=0, w0=own.inner)
    assert as_it_is.loss == pytest.approx(log[-1]["loss"], rel=0.2)  # two steps further than that row
    loaded = mp.load(tmp_path / "x")
    assert mp.evaluate(loaded, Same(), 4, w0=own.inner).loss == pytest.approx(warm.loss)
    again = trainer(mp.inner.Adam(1, lr=0.02))
    again.resume(tmp_path / "x", Same(), Same())
    assert again.inner is not None
    assert digest(again.inner) == digest(own.inner)


def test_the_learner_and_its_inner_variables_end_with_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OuterLoop, "validate", lambda loop, *_: (-loop.step, {"validation_loss": loop.step}))
    early = trainer()
    early.fit(Same(), 3, stop_at=1)
    own = trainer()
    own.fit(Same(), 3, Same(), tmp_path / "x", validate_every=1)
    again = trainer()
    again.resume(tmp_path / "x", Same(), Same())
    for found in (own, again):
        assert found.inner is not None
        assert early.inner is not None
        assert digest(found.inner) == digest(early.inner)
        assert digest(found.learner.state()) == digest(early.learner.state())
    assert digest(mp.load(tmp_path / "x").state()) == digest(early.learner.state())


def test_what_is_kept_predicts_exports_and_gives_ranks(tmp_path: Path) -> None:
    own = trainer()
    own.fit(Same(), 3)
    assert own.inner is not None
    batch = Same().batch(0, 4)
    one = own.learner.adapt(batch.support_x[2], batch.support_y[2], steps=0, w0=own.inner.task(2))
    many = own.learner.adapt_many(batch.support_x, batch.support_y, steps=0, w0=own.inner)
    torch.testing.assert_close(one(batch.query_x[2]), many(batch.query_x)[2], rtol=1e-4, atol=1e-5)
    for name, value in one.factors.items():
        assert torch.equal(value[0], own.inner[name][2])
    one.export_peft(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    updates = one.updates()
    plain, before = one.merged().state_dict(), own.learner.model.module.state_dict()
    for name, delta in updates.items():
        torch.testing.assert_close(plain[name], before[name] + delta)
    found = mp.ranks({name: torch.zeros(2) for name in updates}, "svd", updates=updates, noise=0.0)
    assert set(found.values()) == {2}  # with B = 0, as a cold start has it, 0


@pytest.mark.parametrize(
    ("w0", "sentence"),
    [
        ({}, "w0 is empty"),
        (3, "w0 is of type int"),
        ({"x": torch.zeros(4, 2)}, "the inner variables are"),
        (None, r"for another number of tasks or ways"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(w0: Any, sentence: str) -> None:
    own = trainer()
    own.fit(Same(), 1)
    assert own.inner is not None
    batch = Same().batch(0, 4)
    with pytest.raises(ValueError, match=sentence):
        own.learner.adapt(batch.support_x[0], batch.support_y[0], w0=own.inner if w0 is None else w0)
    still = mp.methods.protonet(mp.backbones.conv4(ways=3, channels=1, width=4, size=16))
    with pytest.raises(ValueError, match="no inner solver"):
        still.adapt(batch.support_x[0], batch.support_y[0], w0=own.inner.task(0))
    with pytest.raises(ValueError, match=r"index=4: there are tasks 0 to 3"):
        own.inner.task(4)


def test_a_learned_rate_of_each_step_stays_that_of_its_step() -> None:
    """The count of Adam's moments goes on, the number of the step in its run does not."""
    solver = mp.inner.Adam(2, lr=0.1, rates="step")
    u = {"rates.x": torch.tensor([0.1, 0.0])}
    slope, w = (lambda u, w: w["x"]), WarmStart({"x": torch.tensor(0.0)})
    for _ in range(3):
        resumed = Resumed(solver, w)
        w = resumed.kept_with(mp.inner.solve(slope, u, w, resumed))
    assert float(w["x"]) == pytest.approx(-0.3, rel=1e-5)
    assert w.state is not None
    assert w.state["before"] == 6


def test_nothing_is_kept_without_warm_start() -> None:
    own = mp.BilevelTrainer(learner(), tasks_per_step=4, progress=False)
    own.fit(Same(), 1)
    assert own.inner is None

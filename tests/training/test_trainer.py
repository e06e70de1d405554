"""The outer loop: gradients into the optimiser, bad numbers, interruptions, problems, what is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.state import digest
from metapeft.training.outer_loop import OuterLoop
from metapeft.training.runs.run import Run
from tests.training.helpers import PLAN, learner, sampler, trainer


def test_a_step_is_that_of_the_optimiser_on_the_hypergradient() -> None:
    own = learner()
    batch = sampler().batch(0, 4)
    found, before = own.hypergradient(batch), own.state()
    trainer(own, optimizer=torch.optim.SGD, lr=0.5, schedule=None, clip=None).fit(sampler(), 1)
    for name, grad in found.grads.items():  # float32, chunks of 3 and 1 added in another order
        torch.testing.assert_close(own.state()[name], before[name] - 0.5 * grad, rtol=1e-4, atol=1e-6)


def test_groups_have_rates_of_their_own() -> None:
    own = learner()
    before = own.state()
    trainer(own, optimizer=torch.optim.SGD, lr={"rates": 0.0, "default": 0.1}, clip=None).fit(sampler(), 1)
    moved = {name for name, value in own.state().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("weights") for name in moved)
    assert not any(name.startswith("rates") for name in moved)


def test_clipping_bounds_the_whole_gradient() -> None:
    own = learner()
    before = own.state()
    trainer(own, optimizer=torch.optim.SGD, lr=1.0, clip=1e-3, schedule=None).fit(sampler(), 1)
    moved = sum(float((own.state()[name] - before[name]).square().sum()) for name in own.trained)
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_validation_keeps_the_best_state(tmp_path: Path) -> None:
    own = trainer(lr=0.5)  # so large that it gets worse
    log = own.fit(sampler(), 6, sampler("val"), tmp_path / "x", **{**PLAN, "validate_every": 1})
    scores = [row["validation_accuracy"] for row in log]
    best = mp.evaluate(own.learner, sampler("val"), PLAN["validation_episodes"]).accuracy
    assert best == max(scores)
    with Run.open(tmp_path / "x", writable=False) as run:
        assert digest(run.load("best")[0]) == digest(own.learner.state())


def test_the_start_can_be_the_best_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validated before the first step, kept where training only makes it worse, and not repeated by a resume."""

    def worse(loop: OuterLoop, validation: Any, episodes: int) -> tuple[float, dict[str, float]]:
        score = 0.9 - 0.1 * loop.step
        return score, {"validation_accuracy": score}

    monkeypatch.setattr(OuterLoop, "validate", worse)
    own = trainer()
    start = digest(own.learner.state())
    plan = {**PLAN, "validate_every": 1, "validate_start": True}
    log = own.fit(sampler(), 3, sampler("val"), tmp_path / "x", stop_at=1, **plan)
    assert log[0] == {"step": 0, "validation_accuracy": 0.9}
    assert digest(own.learner.state()) != start
    again = trainer()
    log = again.resume(tmp_path / "x", sampler(), sampler("val"))
    assert [row["step"] for row in log] == [0, 1, 2, 3]
    assert digest(again.learner.state()) == start


def test_a_start_that_was_logged_but_not_saved_is_not_logged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the row of step 0 and the checkpoint behind it."""
    plan, save, calls = {**PLAN, "validate_start": True}, OuterLoop.save, []

    def killed(loop: OuterLoop, run: Run) -> None:
        calls.append(0)
        if len(calls) == 2:  # the first is of the start itself
            raise SystemExit
        save(loop, run)

    monkeypatch.setattr(OuterLoop, "save", killed)
    with pytest.raises(SystemExit):
        trainer().fit(sampler(), 2, sampler("val"), tmp_path / "x", **plan)
    monkeypatch.setattr(OuterLoop, "save", save)
    log = trainer().resume(tmp_path / "x", sampler(), sampler("val"))
    assert [row["step"] for row in log].count(0) == 1
    assert log[0]["step"] == 0


def test_validating_the_start_needs_validation() -> None:
    with pytest.raises(ValueError, match="validate_start=True has no effect"):
        trainer().fit(sampler(), 3, **{**PLAN, "validate_start": True})
    with pytest.raises(ValueError, match="validate_start=1: allowed are True and False"):
        trainer().fit(sampler(), 3, sampler("val"), **{**PLAN, "validate_start": 1})


class Poisoned:
    """Episodes whose images are not finite from a step on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def batch(self, start: int, count: int) -> Any:
        import dataclasses

        batch = sampler().batch(start, count)
        if start < self.start:
            return batch
        return dataclasses.replace(batch, query_x=torch.full(batch.query_x.shape, float("nan")))


def test_bad_numbers_stop_the_run_and_keep_the_checkpoint(tmp_path: Path) -> None:
    own = trainer()
    with pytest.raises(mp.NumericalError, match=r"outer step 6, episodes 20 to 23.*checkpoint is kept"):
        own.fit(Poisoned(20), 12, run_dir=tmp_path / "x", checkpoint_every=2)
    with Run.open(tmp_path / "x", writable=False) as run:
        tree, _ = run.load("latest")
    assert tree["step"] == 4
    good = trainer()
    good.fit(sampler(), 12, stop_at=4)
    assert digest(tree["learner"]) == digest(good.learner.state())


class Interrupting:
    """Episodes of which drawing one presses Ctrl-C."""

    def __init__(self, at: int) -> None:
        self.at = at

    def batch(self, start: int, count: int) -> Any:
        if start == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return sampler().batch(start, count)


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    whole = trainer()
    whole.fit(sampler(), 6)
    own = trainer()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after outer step \d of 6; trainer.resume"):
        own.fit(Interrupting(8), 6, run_dir=tmp_path / "x")
    assert signal.getsignal(signal.SIGINT) is before
    again = trainer()
    again.resume(tmp_path / "x", Interrupting(-1))
    assert digest(again.learner.state()) == digest(whole.learner.state())


def test_tensorboard_gets_the_rows(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = trainer().fit(sampler(), 4, run_dir=tmp_path / "x", log_every=2, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "x" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in found] == [row["step"] for row in log]
    assert [value for _, value in found] == pytest.approx([row["loss"] for row in log], rel=1e-6)
    with pytest.raises(ValueError, match="give run_dir="):
        trainer().fit(sampler(), 1, tensorboard=True)


class Draws:
    """Stochastic data on both levels: pairs of an inner and an outer batch."""

    def batch(self, start: int, count: int) -> tuple[Any, Any]:
        random = torch.Generator().manual_seed(start)
        inner, outer = torch.randn(2, 32, generator=random, dtype=torch.float64)
        return inner, outer + 2.0


def problem() -> mp.Problem:
    """Inner: shrunk mean `x = sum(data) / (n + n c)` by its penalty c; outer: fit data with mean 2."""

    def inner(u: Any, w: Any, data: torch.Tensor) -> torch.Tensor:
        return (w["x"] - u["goal"] - data).square().mean() / 2

    def outer(u: Any, w: Any, data: torch.Tensor) -> torch.Tensor:
        return (w["x"] - data).square().mean() / 2

    start = torch.tensor(0.0, dtype=torch.float64)
    u = {"goal": torch.tensor(0.0, dtype=torch.float64)}
    return mp.Problem(
        outer, inner, u, {"x": start}, mp.inner.SGD(10, 0.5), data=(torch.zeros(1), torch.zeros(1))
    )


def test_problems_with_stochastic_data_train_and_resume(tmp_path: Path) -> None:
    def own() -> mp.BilevelTrainer:
        return mp.BilevelTrainer(problem(), torch.optim.SGD, lr=0.1, tasks_per_step=1, progress=False)

    whole = own()
    whole.fit(Draws(), 80, run_dir=tmp_path / "whole")
    # noise of 1 / sqrt(32) a step, averaged over about 1 / lr steps
    assert float(whole.learner.trained["goal"]) == pytest.approx(2.0, abs=0.3)
    own().fit(Draws(), 80, run_dir=tmp_path / "parts", stop_at=57)
    last = own()
    last.resume(tmp_path / "parts", Draws())
    assert torch.equal(last.learner.trained["goal"], whole.learner.trained["goal"])


def test_inner_batches_one_a_step() -> None:
    """A list of inner batches is one a step: after a step of rate 1 on each, the last one decides."""

    class Lists:
        def batch(self, start: int, count: int) -> Any:
            return [torch.tensor([5.0]).double(), torch.tensor([1.0]).double()], torch.tensor([2.0]).double()

    own = problem()
    import dataclasses

    own = dataclasses.replace(own, solver=mp.inner.SGD(2, 1.0), data=([0, 0], 0))
    fitted = mp.BilevelTrainer(own, torch.optim.SGD, lr=0.5, tasks_per_step=1, progress=False)
    fitted.fit(Lists(), 60)
    assert float(fitted.learner.trained["goal"]) == pytest.approx(1.0, rel=1e-9)  # goal + 1 = 2


REFUSED: list[tuple[Any, str]] = [
    (lambda: trainer(chunk=0), "chunk=0"),
    (lambda: trainer(tasks_per_step=0), "tasks_per_step=0"),
    (lambda: trainer(clip=-1.0), "clip=-1.0"),
    (lambda: trainer(lr={"weight": 0.1, "default": 0.1}), "not trained"),
    (lambda: trainer(lr={"weights": 0.1}), "no rate"),
    (lambda: trainer(schedule="cosinus").fit(sampler(), 1), "schedule="),
    (
        lambda: trainer(
            schedule=lambda optimizer, _: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        ).fit(sampler(), 1),
        "wants a validation score",
    ),
    (lambda: trainer(optimizer=torch.optim.LBFGS), "several times a step"),
    (lambda: trainer(chunk=None, warm_start=True), "no gradient"),
    (lambda: trainer(kind="warm", chunk=2), "chunk has to be None"),
    (lambda: trainer(kind="protonet", chunk=None, warm_start=True), "no inner solver"),
    (lambda: trainer(learner(outer=())), "trains nothing"),
    (lambda: mp.BilevelTrainer(problem(), chunk=2), "no effect"),
    (lambda: trainer().fit(None, 1), "trains on episodes"),
    (lambda: trainer().fit(sampler(), 0), "steps=0"),
    (lambda: trainer().fit(sampler(episodes=7), 2), "7 episodes, the run takes 8"),
    (lambda: mp.BilevelTrainer(problem()).fit(Draws(), 1, sampler()), "validation= is for learners"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[text for _, text in REFUSED])
def test_refused(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_trainer_moves_its_learner() -> None:
    own = trainer(dtype=torch.float64)
    own.fit(sampler(), 1)
    assert {value.dtype for value in own.learner.variables.values()} == {torch.float64}


def test_inner_variables_are_held_between_runs_of_the_inner_solver() -> None:
    """Three outer steps a run of the inner solver: w changes at steps 1 and 4 only, u at each by hand-made descent."""
    c, x = torch.tensor(3.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)

    def inner(u: Any, w: Any) -> torch.Tensor:
        return (w["x"] - u["c"]).square() / 2

    def outer(u: Any, w: Any) -> torch.Tensor:
        return (w["x"] - u["c"] / 2 - 1).square()

    problem = mp.Problem(outer, inner, {"c": c}, {"x": x}, mp.inner.SGD(steps=1, lr=0.5))
    trainer = mp.BilevelTrainer(
        problem, torch.optim.SGD, lr=0.1, warm_start=True, inner_every=3, progress=False
    )
    trainer.fit(None, steps=6)
    by_hand, w = 3.0, 0.0
    for step in range(6):
        moved = step % 3 == 0
        w = w - 0.5 * (w - by_hand) if moved else w
        slope = (0.5 if moved else 0.0) - 0.5  # dw/dc of the step, less the direct part
        by_hand = by_hand - 0.1 * 2 * (w - by_hand / 2 - 1) * slope
    assert float(trainer.learner.trained["c"]) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("options", [{"warm_start": False}, {"warm_start": True, "inner_every": 0}])
def test_holding_needs_a_warm_start(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="inner_every"):
        mp.BilevelTrainer(problem(), **{"inner_every": 3, **options})

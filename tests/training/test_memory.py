"""Chunks are halved where memory turns out to be too little; what ends a run says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.state import digest
from metapeft.training import outer_gradient
from metapeft.training.chunking import Chunking
from metapeft.training.learner_task import LearnerTask
from metapeft.training.runs.run import Run
from metapeft.training.tuning import calibrated_scale
from tests.training.helpers import PLAN, learner, sampler, trainer

CPU = torch.device("cpu")
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("could not create a primitive"),  # what oneDNN's convolutions say under a limit, as seen
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
]


def short_of_memory(
    own: Any, monkeypatch: pytest.MonkeyPatch, at: Any, error: Exception = ERRORS[0]
) -> list[int]:
    """A learner whose hypergradient runs out of memory where `at(call, tasks, engine)` says so; the sizes tried."""
    tried: list[int] = []
    true = type(own).hypergradient

    def limited(self: Any, batch: Any, w0: Any = None) -> Any:
        tried.append(len(batch))
        if at(len(tried), len(batch), type(self.engine).__name__):
            raise error
        return true(self, batch, w0)

    monkeypatch.setattr(type(own), "hypergradient", limited)
    return tried


@pytest.mark.parametrize(
    ("error", "limit", "chunk"),
    [(ERRORS[0], 3, 2), (ERRORS[1], 2, 2), (ERRORS[2], 1, 1)],
    ids=["cuda", "python", "cpu"],
)
def test_the_chunk_is_halved_and_the_step_repeated(
    error: Exception,
    limit: int,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    same = trainer(kind="protonet", chunk=chunk)
    same.fit(sampler(), 3)
    own = trainer(kind="protonet", chunk=None)
    short_of_memory(own.learner, monkeypatch, lambda _, tasks, engine: tasks > limit, error)
    own.fit(sampler(), 3)
    assert own.gradient.chunking == Chunking(chunk)
    assert digest(own.learner.state()) == digest(same.learner.state())
    assert "outer step 1: out of memory with 4 tasks in one forward, now 2" in caplog.text


def test_an_explicit_chunk_wins_and_is_halved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    own = trainer(chunk=3, memory="1B")
    own.fit(sampler(), 1)
    assert own.gradient.chunking == Chunking(3)
    short_of_memory(own.learner, monkeypatch, lambda _, tasks, engine: tasks > 1)
    own.fit(sampler(), 1)
    assert own.gradient.chunking == Chunking(1)


def test_unroll_gives_way_to_recompute_before_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, plain = trainer(dtype=torch.float64, schedule=None), trainer(dtype=torch.float64, schedule=None)
    plain.fit(sampler(), 1)
    with monkeypatch.context() as patch:
        short_of_memory(own.learner, patch, lambda call, _, engine: engine == "Unroll")
        own.fit(sampler(), 1)
    assert own.gradient.chunking == Chunking(1, recompute=True)
    assert type(own.learner.engine).__name__ == "Unroll"  # the learner itself is as it was
    assert "recompute for unroll" in caplog.text
    for name, value in own.learner.state().items():  # Adam divides by gradients that may be rounding alone
        torch.testing.assert_close(value, plain.learner.state()[name], rtol=1e-6, atol=3e-3 * 2)
    short_of_memory(own.learner, monkeypatch, lambda *_: True)
    with pytest.raises(
        MemoryError, match="outer step 1: out of memory with one task in one forward: take fewer"
    ):
        own.fit(sampler(), 1)


def test_recompute_has_the_gradient_of_unroll() -> None:
    own, batch = learner(dtype=torch.float64), sampler().batch(0, 4)
    found = Chunking(recompute=True).view(LearnerTask(own)).hypergradient(batch)
    for name, grad in own.hypergradient(batch).grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-8, atol=1e-12)


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = trainer(chunk=None)
    short_of_memory(own.learner, monkeypatch, lambda *_: True, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        own.fit(sampler(), 1)


def short_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None
) -> mp.BilevelTrainer:
    """A run that is short of memory once, in step 3 of 6."""
    own = trainer(kind="protonet", chunk=None)
    with monkeypatch.context() as patch:  # three calls measure one task first
        short_of_memory(own.learner, patch, lambda call, tasks, engine: call == 6)
        plan = {**PLAN, "checkpoint_every": 100, "validate_every": 5}
        own.fit(sampler(), 6, sampler("val"), folder, stop_at=stop_at, **plan)
    assert own.gradient.chunking == Chunking(2)
    return own


def test_what_was_chosen_is_stored_and_a_resumed_run_is_bit_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = short_once(tmp_path / "whole", monkeypatch)
    short_once(tmp_path / "parts", monkeypatch, stop_at=4)
    with monkeypatch.context() as patch:  # dies in the validation after step 5
        patch.setattr(outer_gradient, "evaluated", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            short_once(tmp_path / "died", monkeypatch)
    with Run.open(tmp_path / "died", writable=False) as run:
        tree, _ = run.load("latest")  # kept at once, although no checkpoint was due
    assert (tree["step"], tree["chunking"]) == (3, {"chunk": 2, "recompute": False, "validation": 8})
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text()
    for folder in ("parts", "died"):
        again = trainer(kind="protonet", chunk=None)
        again.resume(tmp_path / folder, sampler(), sampler("val"))
        assert again.gradient.chunking == Chunking(2)
        assert digest(again.learner.state()) == digest(whole.learner.state())
        assert (tmp_path / folder / "metrics.jsonl").read_text() == rows


def test_validation_is_cut_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plain, own = trainer(), trainer()
    log = plain.fit(sampler(), 2, sampler("val"), **PLAN)
    true = outer_gradient.evaluated

    def limited(*given: Any, tasks_per_batch: int, **more: Any) -> Any:
        if tasks_per_batch > 2:
            raise MemoryError
        return true(*given, tasks_per_batch=tasks_per_batch, **more)

    monkeypatch.setattr(outer_gradient, "evaluated", limited)
    found = own.fit(sampler(), 2, sampler("val"), **PLAN)
    assert own.gradient.chunking == Chunking(3, validation=2)
    assert found[-1]["validation_loss"] == pytest.approx(log[-1]["validation_loss"], rel=1e-4)  # float32
    assert "out of memory with 4 episodes in one forward, now 2" in caplog.text


NAMES = ["cuda", "python", "cpu", "onednn", "cublas", "c++"]
SLOW = [
    pytest.param(error, id=name, marks=() if name in ("cuda", "onednn") else pytest.mark.slow)
    for name, error in zip(NAMES, ERRORS, strict=True)
]


@pytest.mark.parametrize("error", SLOW)
def test_what_reads_episodes_outside_a_run_is_cut_too(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Evaluation, the choice of settings and the scale of a start."""
    own, true, most = learner("protonet"), mp.Learner.objectives, [8]
    body, preprocess = own.model.module, own.model.preprocess

    def limited(self: Any, batch: Any, training: bool, **more: Any) -> Any:
        if len(batch) > most[0]:
            raise error
        return true(self, batch, training, **more)

    monkeypatch.setattr(mp.Learner, "objectives", limited)
    whole = mp.evaluate(own, sampler("val"), 10)
    scale = calibrated_scale(body, sampler("val"), 10, preprocess=preprocess)
    most[0] = 3
    torch.testing.assert_close(mp.evaluate(own, sampler("val"), 10).losses, whole.losses)
    assert calibrated_scale(body, sampler("val"), 10, preprocess=preprocess) == scale
    for size in (8, 4):
        assert caplog.text.count(f"out of memory with {size} episodes in one forward, now {size // 2}") == 2
    most[0] = 0
    with pytest.raises(MemoryError, match="one of the episodes"):
        mp.evaluate(own, sampler("val"), 10)


def test_what_can_not_be_cut_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    own = trainer(kind="warm")
    short_of_memory(own.learner, monkeypatch, lambda *_: True)
    with pytest.raises(MemoryError, match="warm_start=True keeps all tasks in one forward"):
        own.fit(sampler(), 1)

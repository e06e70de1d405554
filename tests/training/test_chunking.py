"""The chunk that is chosen from what a step is measured to take."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metapeft as mp
from metapeft.base.machine.processes import Processes
from metapeft.base.state import digest
from metapeft.training import chunking
from metapeft.training.chunking import Chunking, choose
from metapeft.training.learner_task import LearnerTask
from metapeft.training.runs.run import Run
from metapeft.training.task import Task
from tests.training.helpers import learner, sampler, trainer
from tests.training.test_memory import CPU
from tests.training.test_trainer import problem


class Measured(Task):
    """A task whose gradient takes `fixed + each * tasks` bytes, as a patched `peak_bytes` says."""

    def __init__(self, fixed: int, each: int) -> None:
        self.fixed, self.each, self.last, self.most = fixed, each, 0, 0

    def hypergradient(self, batch: list[int], w0: Any = None) -> None:  # type: ignore[override]
        self.last = self.fixed + self.each * len(batch)
        self.most = max(self.most, self.last)

    def peak(self, work: Any, device: torch.device) -> int:
        work()
        return self.last


class Tasks(list[int]):
    def tasks(self, which: slice) -> Tasks:
        return Tasks(self[which])


@settings(max_examples=200)
@given(st.integers(0, 1000), st.integers(1, 500), st.integers(1, 40), st.integers(1, 20_000))
def test_the_chosen_chunk_fits_and_is_not_much_less_than_would(
    fixed: int, each: int, tasks: int, room: int
) -> None:
    task = Measured(fixed, each)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "peak_bytes", task.peak)
        patch.setattr(chunking, "held_bytes", lambda _: 100)
        patch.setattr(chunking, "STATED_FRACTION", 1)
        patch.setattr(chunking.log, "disabled", True)
        found = choose(task, Tasks(range(tasks)), 100 + room, CPU, Processes())
    most = min((room - fixed) // each, tasks)  # tasks that fit, 0 or less for none
    chunk = tasks if found.chunk is None else found.chunk
    assert chunk <= max(most, 1)
    sure = max((most - fixed / each - 1) / 2, 1)  # fewer are known to fit where much is shared by all tasks
    assert math.ceil(tasks / chunk) <= math.ceil(tasks / sure)
    assert task.most <= max(room, fixed + each)  # measuring does not exceed what it is to keep


def test_where_one_task_does_not_fit_recompute_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The patched peaks: 1000 bytes a task by unroll, 100 by recompute, of which there are 250."""

    def peak(work: Any, device: torch.device) -> int:
        engine = work.func.__self__.learner.engine
        return (1000 if type(engine).__name__ == "Unroll" else 100) * len(work.args[0])

    monkeypatch.setattr(chunking, "peak_bytes", peak)
    monkeypatch.setattr(chunking, "held_bytes", lambda _: 0)
    own = trainer(chunk=None, memory=250)
    own.fit(sampler(), 2, run_dir=tmp_path / "x")
    assert own.gradient.chunking == Chunking(2, recompute=True, validation=2)
    assert "one task does not fit into 200.0 B: hypergradient recompute for unroll" in caplog.text
    with Run.open(tmp_path / "x", writable=False) as run:
        assert run.load("latest")[0]["chunking"] == {"chunk": 2, "recompute": True, "validation": 2}
    again = trainer(chunk=None, memory=250)
    monkeypatch.setattr(chunking, "peak_bytes", lambda *_: 1 / 0)  # what is stored is not measured again
    again.resume(tmp_path / "x", sampler())
    assert digest(again.learner.state()) == digest(own.learner.state())
    with pytest.raises(ValueError, match=r"trainer\.memory"):
        trainer(chunk=None, memory=300).resume(tmp_path / "x", sampler())


def test_too_little_for_anything_is_said_and_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own = trainer(chunk=None, memory="1B")
    own.fit(sampler(), 1)
    assert own.gradient.chunking == Chunking(1, recompute=True, validation=1)
    assert "it is tried all the same" in caplog.text


class Uneven(Processes):
    """Rank 1 of two, whose share is 3 of 7 tasks."""

    def least(self, value: int) -> int:
        return min(value, 4)  # what rank 0, where all four fit, says

    def most(self, value: int) -> int:
        return max(value, 4)


def test_a_smaller_share_that_fits_sets_no_limit() -> None:
    assert choose(LearnerTask(learner()), sampler().batch(0, 3), 64 << 30, CPU, Uneven()).chunk is None


def test_a_system_that_does_not_tell_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chunking, "peak_bytes", lambda *_: None)
    assert choose(LearnerTask(learner()), sampler().batch(0, 3), 1 << 30, CPU, Processes()).chunk is None
    assert "does not tell" in caplog.text


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: trainer(memory="8"), "memory='8'"),
        (lambda: trainer(kind="warm", memory="8GiB"), "memory='8GiB' has no effect: warm_start"),
        (
            lambda: mp.BilevelTrainer(problem(), memory="8GiB"),
            "memory='8GiB' has no effect: a bilevel problem",
        ),
    ],
)
def test_refused(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()

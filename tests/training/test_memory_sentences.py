"""Too little memory where no chunk can be halved: a sentence, and the run's checkpoint."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.training.outer_loop import OuterLoop
from metapeft.training.runs.run import Run
from tests.training.helpers import learner, sampler
from tests.training.test_memory import ERRORS


def test_too_little_memory_for_the_optimiser_is_a_sentence_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Short(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if own.step == 2:
                raise ERRORS[2]
            return super().step(closure)

    own = mp.BilevelTrainer(learner(), Short, lr=0.01, tasks_per_step=2, progress=False)
    with pytest.raises(
        MemoryError, match=r"outer step 3: out of memory in the step of Short.* checkpoint is kept"
    ):
        own.fit(sampler(), 4, run_dir=tmp_path / "run", checkpoint_every=1)
    with Run.open(tmp_path / "run", writable=False) as run:
        assert run.load("latest")[0]["step"] == 2


def test_too_little_memory_for_a_group_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mp.attach(mp.backbones.conv4(ways=3, channels=1, width=4, size=16), {})

    def short(*_: Any, **__: Any) -> Any:
        raise ERRORS[3]

    monkeypatch.setattr("metapeft.updates.attached.AttachedModel._run", short)
    with pytest.raises(MemoryError, match="out of memory with a group of 16 images: take a smaller group="):
        mp.calibrate(model, sampler().dataset, group=16)


class Drawing:
    """Episodes whose second step cannot be drawn, `times` times in a row."""

    def __init__(self, times: int) -> None:
        self.times, self.true = times, sampler()

    def batch(self, start: int, count: int) -> Any:
        if start == 2 and self.times > 0:
            self.times -= 1
            raise ERRORS[2]
        return self.true.batch(start, count)


def test_episodes_that_do_not_fit_beside_a_step_are_drawn_after_it(caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for times in (0, 1):
        own = mp.BilevelTrainer(learner(), tasks_per_step=2, progress=False)
        own.fit(Drawing(times), 3)
        found.append(own.learner.state())
    assert "outer step 2: out of memory where its episodes were drawn; they are drawn again" in caplog.text
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    own = mp.BilevelTrainer(learner(), tasks_per_step=2, progress=False)
    with pytest.raises(
        MemoryError, match="outer step 2: out of memory where its episodes are drawn: take fewer"
    ):
        own.fit(Drawing(2), 3)


def test_the_next_episodes_are_drawn_while_a_step_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step ends only when the next batch was drawn: without the overlap it would wait for ever."""
    drawn = {step: threading.Event() for step in range(4)}
    true, waited = sampler(), []

    class Told:
        def batch(self, start: int, count: int) -> Any:
            found = true.batch(start, count)
            drawn[start // 2].set()
            return found

    own = mp.BilevelTrainer(learner(), tasks_per_step=2, chunk=2, progress=False)
    step = OuterLoop.outer_step

    def working(loop: OuterLoop, batch: Any) -> None:
        if loop.step < 3:
            waited.append(drawn[loop.step + 1].wait(60))
        step(loop, batch)

    monkeypatch.setattr(OuterLoop, "outer_step", working)
    own.fit(Told(), 4)
    assert waited == [True, True, True]

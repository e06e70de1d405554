"""Too little memory where no chunk can be halved: a sentence, and the run's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.runs import Run
from tests.trainer.helpers import learner, sampler
from tests.trainer.test_memory import ERRORS


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

"""What a trainer trains beside learners and problems: tasks of one's own, and what they say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.base.state import digest
from metapeft.hypergradients.problem import Result
from metapeft.training.learner_task import GivenTask, LearnerTask
from metapeft.training.task import Task
from metapeft.training.trainer import as_task
from tests.training.helpers import learner, sampler
from tests.training.test_trainer import problem


class Slope:
    """`x^2 / 2`, with the five methods that anything trained must have, and no more."""

    def __init__(self) -> None:
        self.x = torch.tensor(1.0, dtype=torch.float64)

    @property
    def trained(self) -> dict[str, Tensor]:
        return {"x": self.x}

    def hypergradient(self, batch: Any, w0: Any = None) -> Result:
        return Result(self.x.square() / 2, {"x": self.x.clone()}, {})

    def state(self) -> dict[str, Tensor]:
        return {"x": self.x.clone()}

    def load_state(self, given: Any) -> None:
        self.x.copy_(given["x"])

    def settings(self) -> dict[str, Any]:
        return {"method": "slope"}


class Derived(Slope, Task):
    """The same as a task that says more: it is whole, and needs no episodes."""

    undivided, needs_episodes = "a slope has no tasks", False


class Numbers:
    """Episodes that nobody reads."""

    def batch(self, start: int, count: int) -> list[int]:
        return list(range(start, start + count))


@pytest.mark.parametrize("made", [Slope, Derived])
def test_a_task_of_ones_own_is_trained_and_resumed(made: Any, tmp_path: Path) -> None:
    def own() -> mp.BilevelTrainer:
        return mp.BilevelTrainer(made(), torch.optim.SGD, lr=0.5, tasks_per_step=2, progress=False)

    whole, part, again = own(), own(), own()
    whole.fit(Numbers(), 4)
    assert float(whole.learner.x) == 0.5**4
    part.fit(Numbers(), 4, run_dir=tmp_path / "x", stop_at=2)
    again.resume(tmp_path / "x", Numbers())
    assert (again.step, digest(again.learner.state())) == (4, digest(whole.learner.state()))


def test_what_a_task_says_of_itself_decides() -> None:
    assert type(as_task(Slope())) is GivenTask
    own = Derived()
    assert as_task(own) is own
    assert mp.BilevelTrainer(own, progress=False).fit(None, 1)
    with pytest.raises(ValueError, match="episodes=None"):
        mp.BilevelTrainer(Slope(), progress=False).fit(None, 1)
    with pytest.raises(ValueError, match="chunk=2: a slope has no tasks"):
        mp.BilevelTrainer(own, chunk=2)
    with pytest.raises(ValueError, match="validation= is for learners"):
        mp.BilevelTrainer(own, progress=False).fit(None, 1, Numbers())
    with pytest.raises(ValueError, match="inner_every=2 holds"):
        mp.BilevelTrainer(own, warm_start=True, inner_every=2)


def test_only_a_problem_with_a_solver_is_held_and_only_unroll_recomputed() -> None:
    whole = as_task(problem())
    held = whole.held()
    assert held is not None
    assert held.trained["goal"] is whole.trained["goal"]
    assert held.hypergradient(None).w["x"] == 0.0  # where it starts
    assert whole.recomputing() is None
    own = learner()
    task = as_task(own)
    assert isinstance(task, LearnerTask)
    assert task.held() is None
    again = task.recomputing()
    assert again is not None
    assert all(again.trained[name] is value for name, value in own.trained.items())
    assert as_task(learner("warm")).recomputing() is None  # its engine is the envelope's


def test_a_trainer_reads_as_its_run_stands() -> None:
    own = mp.BilevelTrainer(learner(), tasks_per_step=2, progress=False)
    assert (own.step, own.best) == (0, None)
    before = own.optimizer
    own.fit(sampler(), 2, sampler("val"), validate_every=1, validation_episodes=2)
    assert own.step == 2
    assert own.best is not None
    assert own.optimizer is not before
    assert own.gradient.chunking is not None

"""Tasks that diverge are left out of their step and counted; without being asked for it they end the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.base.errors import NotFiniteInput, NumericalError
from metapeft.base.machine.processes import Processes
from metapeft.base.state import digest
from metapeft.training.accumulation import accumulated
from metapeft.training.learner_task import LearnerTask
from metapeft.training.outer_gradient import averaged

BAD = (1, 5)


class Tasks:
    """Regressions of 4 points; in some of them the inputs are so large that the inner loop diverges."""

    def __init__(self, bad: tuple[int, ...] = BAD, nan: bool = False) -> None:
        self.bad, self.nan = bad, nan

    def batch(self, start: int, count: int) -> mp.EpisodeBatch:
        parts = []
        for number in range(start, start + count):
            random = torch.Generator().manual_seed(number)
            x, y = (torch.randn(8, 2, generator=random, dtype=torch.float64) for _ in range(2))
            if number % 8 in self.bad:
                x = x * (torch.nan if self.nan else 1e160)
            parts.append(mp.Episode(x[:4], y[:4, :1], x[4:], y[4:, :1]))
        return mp.EpisodeBatch.stack(parts)


def learner() -> mp.Learner:
    body = mp.backbones.mlp(2, 1, hidden=(3,), seed=1).double()
    return mp.Learner(mp.attach(body, mp.Full()), mp.inner.SGD(3, 0.1), loss=F.mse_loss)


def trainer(own: Any = None, **options: Any) -> mp.BilevelTrainer:
    given: dict[str, Any] = {"tasks_per_step": 8, "lr": 1e-2, "progress": False, "chunk": 4, **options}
    return mp.BilevelTrainer(learner() if own is None else own, **given)


@pytest.mark.parametrize("chunk", [None, 3, 8])
def test_the_gradient_is_that_of_the_tasks_that_are_left(chunk: int | None) -> None:
    own = learner()
    batch = Tasks().batch(0, 8)
    with pytest.raises(NumericalError):
        accumulated(LearnerTask(own), batch, chunk)
    found = accumulated(LearnerTask(own), batch, chunk, skip=True).of_those_left(8)
    left = [i for i in range(8) if i not in BAD]
    fields = {name: value[left] for name, value in batch.fields().items() if value is not None}
    expected = own.hypergradient(mp.EpisodeBatch(**fields))
    assert found.diverged == 2
    torch.testing.assert_close(found.values["loss"], expected.value, rtol=1e-10, atol=0)
    for name, grad in expected.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-13)


def test_without_a_diverging_task_nothing_changes() -> None:
    states = []
    for diverged in ("raise", "skip"):
        own = trainer(diverged=diverged)
        log = own.fit(Tasks(()), steps=3, log_every=1)
        states.append(digest(own.learner.state()))
        assert [row.get("diverged") for row in log] == [None if diverged == "raise" else 0.0] * 3
    assert states[0] == states[1]
    assert "diverged" not in trainer().settings()


def test_they_are_counted_in_the_log_and_over_a_resume(tmp_path: Path) -> None:
    episodes = Tasks()
    with pytest.raises(NumericalError, match=r"outer step 1, episodes 0 to 7: .*The last checkpoint is kept"):
        trainer().fit(episodes, steps=1)
    whole = trainer(diverged="skip")
    plan: dict[str, Any] = {
        "validate_every": 4,
        "validation_episodes": 16,
        "log_every": 2,
        "checkpoint_every": 1,
    }
    log = whole.fit(episodes, 4, episodes, tmp_path / "whole", **plan)
    assert [row["diverged"] for row in log] == [4.0, 4.0]
    assert whole.diverged == 8
    assert log[-1]["validation_diverged"] == 4
    assert all(bool(value.isfinite().all()) for value in whole.learner.state().values())
    first, second = trainer(diverged="skip"), trainer(diverged="skip")
    first.fit(episodes, 4, episodes, tmp_path / "run", stop_at=3, **plan)
    log = second.resume(tmp_path / "run", episodes, episodes)
    assert second.diverged == 8
    assert [row["diverged"] for row in log] == [4.0, 4.0]
    assert digest(second.learner.state()) == digest(whole.learner.state())
    with pytest.raises(
        ValueError, match=r"trainer\.diverged is None here, but the run was started with 'skip'"
    ):
        trainer().resume(tmp_path / "run", episodes, episodes)


def test_validation_of_classes_counts_them_as_wrong() -> None:
    class Classes(Tasks):
        def batch(self, start: int, count: int) -> mp.EpisodeBatch:
            batch = super().batch(start, count)
            y = torch.arange(4).expand(count, -1) % 2
            return mp.EpisodeBatch(
                batch.support_x, y, batch.query_x, y, classes=torch.arange(2).expand(count, -1)
            )

    body = mp.backbones.mlp(2, 2, hidden=(3,), seed=1).double()
    own = mp.Learner(mp.attach(body, mp.Full()), mp.inner.SGD(3, 0.1))
    log = trainer(own, diverged="skip").fit(Classes(), 1, Classes(), validation_episodes=8)
    assert log[-1]["validation_diverged"] == log[-1]["diverged"] == 2
    expected = mp.evaluate(own, Classes(), 8, diverged="wrong")
    assert log[-1]["validation_accuracy"] == pytest.approx(expected.accuracy)
    assert expected.diverged == 2


def test_a_step_without_any_task_left_and_damaged_data_end_the_run() -> None:
    with pytest.raises(NumericalError, match=r"outer step 1.*all 8 tasks diverged, the last of them"):
        trainer(diverged="skip").fit(Tasks(tuple(range(8))), steps=2)
    with pytest.raises(NumericalError, match="has NaN or infinity") as caught:
        trainer(diverged="skip").fit(Tasks(nan=True), steps=2)
    assert isinstance(caught.value.__cause__, NotFiniteInput)


def test_over_ranks_the_mean_is_over_all_that_are_left() -> None:
    """Two ranks of 4 tasks, one of which loses both: as if one process had 8."""
    own = learner()
    batch = Tasks((0, 1)).batch(0, 8)
    parts = [accumulated(LearnerTask(own), batch.tasks(slice(i, i + 4)), 2, skip=True) for i in (0, 4)]
    assert [part.kept for part in parts] == [0.5, 1.0]

    class Two(Processes):
        """What both ranks would add up, seen from the first."""

        def mean(self, own: Any, weight: float) -> Any:
            sums.append(own)
            if len(sums) < 2:
                return own
            return {name: 0.5 * (value + sums[0][name]) for name, value in own.items()}

    sums: list[Any] = []
    found = [averaged(part, 0.5, Two(0, 2), own.trained) for part in parts][1].of_those_left(8)
    expected = accumulated(LearnerTask(own), batch, None, skip=True).of_those_left(8)
    assert found.diverged == expected.diverged == 2
    for name, grad in expected.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(found.values["loss"], expected.values["loss"], rtol=1e-10, atol=0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="diverged='drop': allowed are 'raise' and 'skip'"):
        trainer(diverged="drop")
    half = lambda u, w: (w["x"] - u["c"]).square()  # noqa: E731
    problem = mp.Problem(half, half, {"c": torch.tensor(3.0)}, {"x": torch.tensor(0.0)}, mp.inner.SGD(1, 0.1))
    with pytest.raises(
        ValueError, match='diverged="skip" leaves out single tasks, but a bilevel problem is not cut'
    ):
        mp.BilevelTrainer(problem, diverged="skip")
    with pytest.raises(
        ValueError, match='diverged="skip" leaves out single tasks, but warm_start=True keeps all'
    ):
        trainer(chunk=None, warm_start=True, diverged="skip")

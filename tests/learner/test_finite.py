"""NaN or infinity in any batch, not only the first, is refused with its place; what is finite passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.base.finite import refuse_not_finite
from metapeft.episodes.episode import EpisodeBatch
from metapeft.training.evaluation import evaluated
from metapeft.training.runs.run import Run
from tests.learner.helpers import images, learner_of

SGD = mp.inner.SGD


def poisoned(batch: EpisodeBatch, field: str, task: int, item: int, value: float = torch.nan) -> EpisodeBatch:
    changed: Tensor = getattr(batch, field).clone()
    changed[task, item].view(-1)[-1] = value
    return dataclasses.replace(batch, **{field: changed})


class Episodes:
    """Episodes of floats, of which number 13 has a NaN in its third query image."""

    def batch(self, start: int, count: int) -> EpisodeBatch:
        parts = [images(tasks=1, seed=number) for number in range(start, start + count)]
        batch = EpisodeBatch.stack([part.episode(0) for part in parts])
        return poisoned(batch, "query_x", 13 - start, 2) if start <= 13 < start + count else batch


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("field", ["support_x", "query_x"])
def test_in_a_later_batch(field: str, value: float) -> None:
    learner, _ = learner_of("lora", inner=SGD(1, 0.1))
    learner.hypergradient(images())
    with pytest.raises(ValueError, match=f"{field} has NaN or infinity in item 3 of task 1") as found:
        learner.hypergradient(poisoned(images(), field, 1, 3, value))
    assert isinstance(found.value, mp.NumericalError)
    learner.hypergradient(images())


@pytest.mark.parametrize("field", ["support_y", "query_y"])
def test_in_the_targets_of_a_regression(field: str) -> None:
    episodes = mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, 5, 5)
    body = mp.backbones.mlp(1, 1, hidden=(4,))
    learner = mp.Learner(mp.attach(body, mp.Full()), SGD(1, 0.01), loss=torch.nn.functional.mse_loss)
    learner.hypergradient(episodes.batch(0, 2))
    with pytest.raises(ValueError, match=f"{field} has NaN or infinity in item 4 of task 1"):
        learner.hypergradient(poisoned(episodes.batch(2, 2), field, 1, 4))


def test_when_adapting_and_predicting() -> None:
    learner, _ = learner_of("lora", inner=SGD(1, 0.1))
    good, bad = images(), poisoned(images(), "support_x", 1, 3)
    many = learner.adapt_many(good.support_x, good.support_y)
    with pytest.raises(ValueError, match="support_x has NaN or infinity in item 3 of task 1"):
        learner.adapt_many(bad.support_x, bad.support_y)
    with pytest.raises(ValueError, match="support_x has NaN or infinity in item 3 of task 0"):
        learner.adapt(bad.support_x[1], bad.support_y[1])
    with pytest.raises(ValueError, match="query_x has NaN or infinity in item 3 of task 1"):
        many(bad.support_x)


def test_when_evaluating_the_episode_is_named() -> None:
    learner, _ = learner_of("lora", inner=SGD(1, 0.1))
    with pytest.raises(ValueError, match="query_x has NaN or infinity in item 2 of task 1, episode 13"):
        mp.evaluate(learner, Episodes(), 20, tasks_per_batch=4)
    with pytest.raises(ValueError, match="item 2 of task 3, episode 13"):  # as ranks share a validation out
        evaluated(learner, Episodes(), 5, first=10)


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_when_training_the_episode_is_named(chunk: int | None, tmp_path: Path) -> None:
    """However the step is cut: episodes 12 to 15 are its fourth step, 13 is task 1 of that step."""
    learner, _ = learner_of("lora", inner=SGD(1, 0.1))
    trainer = mp.BilevelTrainer(learner, tasks_per_step=4, chunk=chunk, progress=False)
    place = r"outer step 4, episodes 12 to 15: query_x has NaN or infinity in item 2 of task 1, episode 13 .*is kept"
    with pytest.raises(mp.NumericalError, match=place):
        trainer.fit(Episodes(), 6, run_dir=tmp_path / "x", checkpoint_every=1)
    with Run.open(tmp_path / "x", writable=False) as run:
        assert run.load("latest")[0]["step"] == 3


class Floats:
    """An image data set whose images are floats, one of them with a NaN."""

    def __init__(self, bad: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.images = torch.rand(24, 1, 16, 16, generator=random)
        self.images[bad, 0, 3, 3] = torch.nan
        self.labels, self.classes, self.preprocess = torch.arange(24) % 4, list("abcd"), None

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: Tensor) -> Tensor:
        return self.images[index]


def test_when_pretraining_and_calibrating() -> None:
    body = mp.backbones.conv4(width=4, size=16)
    with pytest.raises(
        mp.NumericalError, match=r"outer step \d+, .*: x has NaN or infinity in item \d of task \d"
    ):
        mp.pretrain(body, Floats(5), steps=40, group=4, groups=2, progress=False)
    with pytest.raises(ValueError, match=r"x has NaN or infinity in item \d of task 0"):
        mp.calibrate(mp.attach(body, {}), Floats(5), groups=30, group=4)


def test_what_is_finite_passes() -> None:
    """Large numbers whose sum overflows, integers, and what is no tensor."""
    large = torch.full((2, 3, 4), 3e38)
    refuse_not_finite({"large": large, "words": torch.ones(2, 3, dtype=torch.int64), "flag": True}, "x")
    with pytest.raises(ValueError, match=r"x\['ages'\] has NaN or infinity in item 1 of task 0"):
        refuse_not_finite({"ages": torch.tensor([[0.0, torch.inf], [torch.nan, 0.0]])}, "x")
    with pytest.raises(ValueError, match=r"x\[1\] has NaN or infinity in item 2 of task 1"):
        refuse_not_finite((large, poisoned(images(), "query_x", 1, 2).query_x), "x")


def test_images_of_bytes_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(Tensor, "isfinite", lambda self: looked.append(self))
    refuse_not_finite(torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8), "x")
    assert not looked

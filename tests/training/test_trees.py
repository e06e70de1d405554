"""Inputs that are dicts or tuples: batches count tasks, chunks cut them, episodes are told apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.training.accumulation import accumulated
from metapeft.training.trainer import as_task


class Two(nn.Module):
    """Reads ids and weights by name or by place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.classifier = nn.Linear(6, 3)
        self.double()

    def forward(self, ids: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
        read = (self.table(ids) * weight.unsqueeze(-1)).mean(1) * scale
        logits: Tensor = self.classifier(torch.tanh(read))
        return logits


def inputs(kind: str, tasks: int, items: int, seed: int) -> Any:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (tasks, items, 5), generator=random)
    weight = torch.rand(tasks, items, 5, generator=random, dtype=torch.float64)
    return {"ids": ids, "weight": weight, "scale": 2.0} if kind == "dict" else (ids, weight)


class Sampler:
    """Episodes made up as they are asked for."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        self.kind, self.seed = kind, seed

    def batch(self, start: int, count: int) -> mp.EpisodeBatch:
        one = [self.episode(number) for number in range(start, start + count)]
        return mp.EpisodeBatch.stack(one)

    def episode(self, number: int) -> mp.Episode:
        y = torch.arange(3).repeat(2)
        x, query = (inputs(self.kind, 1, 6, 1000 * self.seed + 2 * number + i) for i in range(2))
        batch = mp.EpisodeBatch(x, y[None], query, y[None], classes=torch.arange(3)[None])
        return batch.episode(0)


def learner() -> mp.Learner:
    torch.manual_seed(0)
    model = mp.attach(Two(), mp.LoRA(2))
    return mp.Learner(model, mp.inner.SGD(2, 0.1), outer=("weights", "factors"))


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_a_batch_counts_cuts_and_moves_its_tasks(kind: str) -> None:
    batch = Sampler(kind).batch(0, 8)
    assert len(batch) == 8
    assert len(batch.tasks(slice(2, 5))) == 3
    again = mp.EpisodeBatch.stack([batch.episode(task) for task in range(8)])
    moved = again.to("cpu").tasks(slice(0, 8))
    for name in ("support_x", "query_x"):
        values = zip(
            *(getattr(one, name).values() if kind == "dict" else getattr(one, name) for one in (batch, moved))
        )
        for value, other in values:
            assert value == 2.0 == other if isinstance(value, float) else torch.equal(value, other)


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_chunks_have_the_gradient_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, batch, seen = learner(), Sampler(kind).batch(0, 8), []
    whole = one.hypergradient(batch)
    plain = mp.Learner.hypergradient

    def counted(self: mp.Learner, batch: Any, w0: Any = None) -> Any:
        seen.append(len(batch))
        return plain(self, batch, w0)

    monkeypatch.setattr(mp.Learner, "hypergradient", counted)
    found = accumulated(as_task(one), batch, chunk=3)
    assert seen == [3, 3, 2]
    for name, grad in whole.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-10, atol=1e-14)
    trainer = mp.BilevelTrainer(learner(), tasks_per_step=8, chunk=4, progress=False)
    trainer.fit(Sampler(kind), steps=1)
    assert seen[3:] == [4, 4]


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_every_evaluated_episode_leaves_its_fingerprint(kind: str) -> None:
    one = learner()
    a, same, b = (mp.evaluate(one, Sampler(kind, seed), episodes=10) for seed in (0, 0, 1))
    assert len(a.fingerprints) == len(set(a.fingerprints)) == 10
    assert mp.compare(a, same).difference == 0
    with pytest.raises(ValueError, match="different episodes: 10 of 10"):
        mp.compare(a, b)

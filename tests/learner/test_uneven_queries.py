"""Query sets of unequal size: losses, accuracies and gradients are those of a plain loop over tasks without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.base.state import digest
from metapeft.training.runs.run import Run
from tests.episodes.test_small_classes import uneven
from tests.learner.helpers import FORMATS, assert_same, learner_of
from tests.learner.plain import Net, plain_gradients

COUNTS = [2, 3, 4, 6, 9, 1]
SAMPLERS: dict[str, dict[str, Any]] = {
    "rest": {"shots": 1, "queries": "rest", "small": "skip"},
    "capped": {"shots": 1, "queries": 4, "small": "cap"},
    "rest, imbalanced": {"shots": (1, 2), "queries": "rest", "small": "skip", "imbalanced": True},
}
SGD = mp.inner.SGD
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "full": ("full", "running", {"inner": SGD(2, 0.1)}),
    "full, support": ("full", "support", {"inner": SGD(2, 0.1)}),
    "full, transductive": ("full", "transductive", {"inner": SGD(1, 0.1)}),
    "first order": ("full", "running", {"inner": SGD(2, 0.1), "hypergradient": "first-order"}),
    "both": ("lora", "running", {
        "inner": SGD(2, 0.1), "head": "prototype-init", "inner_data": "both", "outer": ("weights", "factors"),
    }),
    "ridge": ("lora", "running", {"inner": SGD(2, 0.1), "head": "ridge", "outer": ("weights", "factors", "head")}),
    "generated": ("cp", "running", {
        "inner": SGD(2, 0.1), "head": "prototype-init", "generator": mp.generators.MappingNet(hidden=4),
        "outer": ("weights", "factors", "generator"),
    }),
    "batch statistics": ("lora", "running", {"head": "prototype-init", "outer": ("weights", "factors")}),
}  # fmt: skip


def sampler(kind: str, **options: Any) -> mp.EpisodeSampler:
    return mp.EpisodeSampler(uneven(COUNTS), 3, seed=4, **{**SAMPLERS[kind], **options})


def in_floats(batch: mp.EpisodeBatch) -> mp.EpisodeBatch:
    """Images as floats of both signs, which a small network tells apart."""

    def drawn(x: Tensor) -> Tensor:
        return torch.sin(x.double() * 7.3 + torch.arange(16.0, dtype=torch.float64).view(1, 4, 4))

    fields = batch.fields()
    return mp.EpisodeBatch(**{**fields, "support_x": drawn(batch.support_x), "query_x": drawn(batch.query_x)})


def unpadded(batch: mp.EpisodeBatch, task: int) -> mp.EpisodeBatch:
    """One task, with what counts and nothing else."""
    fields: dict[str, Any] = {"classes": batch.classes[task : task + 1]}
    for part in ("support", "query"):
        mask = getattr(batch, f"{part}_mask")
        there = slice(None) if mask is None else mask[task]
        for name in (f"{part}_x", f"{part}_y"):
            fields[name] = getattr(batch, name)[task][there][None]
    return mp.EpisodeBatch(**fields)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("method", METHODS)
def test_value_gradient_and_accuracy(method: str, kind: str) -> None:
    form, norm, options = METHODS[method]
    batch = in_floats(sampler(kind).batch(0, 4))
    assert not batch.query_mask.all()
    own, net = learner_of(form, norm, **options)
    found = own.hypergradient(batch)
    values, grads, accuracies = [], [], []
    for task in range(4):
        one = unpadded(batch, task)
        said = {"format": FORMATS[form], "norm": norm, **options}
        value, expected = plain_gradients(own.variables, net, one, **said)
        values.append(value)
        grads.append(expected)
        accuracies.append(own.hypergradient(one).log["accuracy"])
    torch.testing.assert_close(found.value, torch.stack(values).mean(), rtol=1e-9, atol=0)
    assert_same(dict(found.grads), {n: torch.stack([g[n] for g in grads]).mean(0) for n in grads[0]})
    assert torch.equal(found.log["accuracy"], torch.cat(accuracies))


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("head", ["learned", "prototypes"])
def test_evaluation_and_adapted_tasks(head: str, kind: str) -> None:
    own, _ = learner_of("lora", "running", inner=SGD(2, 0.1), head=head)

    class Floats:
        def batch(self, start: int, count: int) -> mp.EpisodeBatch:
            return in_floats(sampler(kind).batch(start, count))

    found = mp.evaluate(own, Floats(), episodes=7, tasks_per_batch=3)
    batch = Floats().batch(0, 7)
    many = own.adapt_many(batch.support_x, batch.support_y, mask=batch.support_mask, ways=3)
    logits = many(batch.query_x)
    for task in range(7):
        one = unpadded(batch, task)
        alone = own.adapt(one.support_x[0], one.support_y[0], ways=3)(one.query_x[0])
        torch.testing.assert_close(logits[task][batch.query_mask[task]], alone, rtol=1e-9, atol=1e-12)
        loss = torch.nn.functional.cross_entropy(alone, one.query_y[0])
        torch.testing.assert_close(found.losses[task], loss, rtol=1e-9, atol=0)
        hits = (alone.argmax(1) == one.query_y[0]).double().mean()
        torch.testing.assert_close(found.values[task], hits, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_chunks_runs_and_a_resume(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient does not depend on the chunk, and a stopped run goes on bit for bit with what it stores."""
    data = uneven(COUNTS)
    data.loaded = {"name": "uneven"}
    monkeypatch.setattr("metapeft.episodes.settings.load_dataset", lambda name: {"uneven": data}[name])

    def trainer(chunk: int) -> mp.BilevelTrainer:
        own = mp.Learner(mp.attach(Net(), mp.LoRA(1)), SGD(2, 0.1), head="prototype-init")
        return mp.BilevelTrainer(own, tasks_per_step=5, chunk=chunk, lr=1e-2, progress=False)

    states = []
    for chunk in (2, 5):
        own = trainer(chunk)
        own.fit(mp.EpisodeSampler(data, 3, seed=4, **SAMPLERS[kind]), steps=4)
        states.append(own.learner.state())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-9, atol=1e-12)
    first, plan = trainer(2), {"checkpoint_every": 1, "validate_every": 4, "validation_episodes": 3}
    episodes = mp.EpisodeSampler(data, 3, seed=4, **SAMPLERS[kind])
    first.fit(episodes, 4, episodes, tmp_path / "run", stop_at=2, **plan)  # type: ignore[arg-type]
    second = trainer(2)
    second.resume(tmp_path / "run")
    whole = trainer(2)
    whole.fit(episodes, 4, episodes, **plan)  # type: ignore[arg-type]
    assert digest(second.learner.state()) == digest(whole.learner.state())
    with Run.open(tmp_path / "run", writable=False) as run:
        assert run.config["episodes"]["sampler"]["small"] == SAMPLERS[kind]["small"]
    other = mp.EpisodeSampler(data, 3, seed=4, **{**SAMPLERS[kind], "queries": 1, "small": "skip"})
    with pytest.raises(ValueError, match=r"episodes\.sampler"):
        trainer(2).resume(tmp_path / "run", other)

"""Tasks of torchmeta and learn2learn feed a learner of ours, and our episodes code written for them: real packages.

Both ways the gradients are those of the library's own code on the same task.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from benchmarks.interop import (
    distribution,
    images,
    learn2learn_tasks,
    rates,
    seeded,
    torchmeta_dataset,
    torchmeta_loader,
)
from benchmarks.peer_imports import import_learn2learn, import_torchmeta
from tests.conftest import require_peer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # of their imports
WAYS, LR, STEPS = 5, 0.1, 2


@pytest.fixture(scope="module")
def torchmeta() -> ModuleType:
    require_peer("torchmeta")
    return import_torchmeta()


@pytest.fixture(scope="module")
def learn2learn() -> ModuleType:
    require_peer("learn2learn")
    return import_learn2learn()


DATA = images(classes=8, each=6, size=4)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, WAYS)).double()


def floats(x: Tensor) -> Tensor:
    return x.double() / 255


def ours(batch: mp.EpisodeBatch) -> dict[str, Tensor]:
    learner = mp.methods.maml(net(), steps=STEPS, lr=LR, norm="running", head="learned")
    return dict(learner.hypergradient(batch).grads)


def in_floats(batch: mp.EpisodeBatch) -> mp.EpisodeBatch:
    return mp.EpisodeBatch(floats(batch.support_x), batch.support_y, floats(batch.query_x), batch.query_y)


def assert_same(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[f"weights.{name}"], value, rtol=1e-10, atol=1e-14)


def by_torchmeta(torchmeta: ModuleType, batch: Any) -> dict[str, Tensor]:
    """The loop of torchmeta's README over a batch of its form."""
    modules = torchmeta.modules
    model = modules.MetaSequential(
        nn.Flatten(), modules.MetaLinear(16, 8), nn.Tanh(), modules.MetaLinear(8, WAYS)
    ).double()
    model.load_state_dict(net().state_dict())
    (x, y), (query_x, query_y) = batch["train"], batch["test"]
    total = torch.tensor(0.0)
    for t in range(len(x)):
        params = None
        for _ in range(STEPS):
            loss = F.cross_entropy(model(floats(x[t]), params=params), y[t])
            params = torchmeta.utils.gradient_based.gradient_update_parameters(
                model, loss, params=params, step_size=LR
            )
        total = total + F.cross_entropy(model(floats(query_x[t]), params=params), query_y[t]) / len(x)
    total.backward()
    return {name: value.grad for name, value in model.named_parameters()}


def by_learn2learn(learn2learn: ModuleType, tasks: list[Any]) -> dict[str, Tensor]:
    """The `fast_adapt` of learn2learn's examples: every other row is for adaptation."""
    maml = learn2learn.algorithms.MAML(net(), lr=LR, first_order=False)
    for x, y in tasks:
        adapting = torch.zeros(len(y), dtype=torch.bool)
        adapting[torch.arange(WAYS) * 2] = True
        learner = maml.clone()
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(floats(x[adapting])), y[adapting]))
        (F.cross_entropy(learner(floats(x[~adapting])), y[~adapting]) / len(tasks)).backward()
    return {name: value.grad for name, value in maml.module.named_parameters()}


def test_batches_of_torchmetas_loader(torchmeta: ModuleType) -> None:
    seeded(0)
    stream = mp.EpisodeStream(torchmeta_loader(DATA, shots=2, queries=3, batch_size=4))
    found = stream.batch(0, 4)
    assert found.support_x.shape == (4, WAYS * 2, 1, 4, 4)
    seeded(0)
    batch = next(iter(torchmeta_loader(DATA, shots=2, queries=3, batch_size=4)))
    assert_same(ours(in_floats(found)), by_torchmeta(torchmeta, batch))


def test_tasks_of_torchmetas_data_set(torchmeta: ModuleType) -> None:
    seeded(0)
    stream = mp.EpisodeStream(torchmeta_dataset(DATA, shots=1, queries=3, seed=3))
    found = stream.batch(0, 2)
    seeded(0)
    dataset = torchmeta_dataset(DATA, shots=1, queries=3, seed=3)
    for t in range(2):
        task = dataset.sample_task()
        assert torch.equal(found.query_x[t], torch.stack([task["test"][i][0] for i in range(3 * WAYS)]))
        assert found.query_y[t].tolist() == [task["test"][i][1] for i in range(3 * WAYS)]


def test_torchmetas_curves(torchmeta: ModuleType) -> None:
    from torchmeta.toy.helpers import sinusoid
    from torchmeta.utils.data import BatchMetaDataLoader

    loader = BatchMetaDataLoader(sinusoid(shots=5, test_shots=7), batch_size=4, num_workers=0)
    curves = mp.backbones.mlp(1, 1, hidden=(8,)).double()
    learner = mp.methods.maml(curves, steps=1, lr=0.01, norm="running", loss=F.mse_loss, dtype=torch.float64)
    trainer = mp.BilevelTrainer(learner, tasks_per_step=4, progress=False)
    log = trainer.fit(mp.EpisodeStream(loader), steps=2, log_every=1)
    assert len(log) == 2
    assert mp.EpisodeStream(loader).batch(0, 3).support_y.shape == (3, 5, 1)


def test_tasks_of_learn2learn(learn2learn: ModuleType) -> None:
    source = learn2learn_tasks(DATA, shots=1, queries=1, num_tasks=6)
    found = mp.EpisodeStream(source, shots=1).batch(3, 4)
    # of each class the first row is the support set, which is every other row
    tasks = []
    for t in range(4):
        x, y = source[(3 + t) % 6]
        order = y.argsort(stable=True)
        tasks.append((x[order], y[order]))
    assert_same(ours(in_floats(found)), by_learn2learn(learn2learn, tasks))


def test_our_episodes_in_torchmetas_loop(torchmeta: ModuleType) -> None:
    sampler = mp.EpisodeSampler(DATA, WAYS, shots=2, queries=3)
    batch = next(iter(mp.MetaBatches(sampler, batch_size=4, preprocess=lambda x: x)))
    assert_same(ours(in_floats(sampler.batch(0, 4))), by_torchmeta(torchmeta, batch))


def test_our_episodes_in_learn2learns_loop(learn2learn: ModuleType) -> None:
    sampler = mp.EpisodeSampler(DATA, WAYS, shots=1, queries=1)
    pairs = mp.TaskPairs(sampler, preprocess=lambda x: x)
    found = by_learn2learn(learn2learn, [pairs.sample() for _ in range(4)])
    assert_same(ours(in_floats(sampler.batch(0, 4))), found)


def test_the_same_distribution_many_times_as_fast() -> None:
    """A few hundred episodes, and a tenth of the factor: the whole comparison is `python -m benchmarks.interop`."""
    require_peer("torchmeta")
    require_peer("learn2learn")
    for name, one in distribution(640)["statistics"].items():
        for pair, p in one["p"].items():
            if one["cells"] < 64:  # with several episodes a cell
                assert p > 1e-5, f"{name}: {pair}"
    for name, ratio in rates(repeats=1, seconds=0.05)["ratio"].items():
        assert ratio > 2, name

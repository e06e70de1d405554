"""The mapping net by its formula, its start, masks, and the control that feeds it another task."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.datasets.images import ImageData
from metapeft.generators import MappingNet, OtherTask
from metapeft.generators.table import registry
from tests.learner.helpers import images, learner_of

SEEDS = {"a.seed": (3,), "b.seed": (2, 2)}


Tensors = dict[str, torch.Tensor]


def by_hand(p: Tensors, z: torch.Tensor) -> Tensors:
    """The mapping net on the features of one task or one input."""
    z = (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt()
    h = torch.relu(p["hidden.weight"] @ z + p["hidden.bias"])
    return {n: (p[f"{n}.weight"] @ h + p[f"{n}.bias"]).reshape(shape) for n, shape in SEEDS.items()}


#: every generator of the table -> how it is made, and its formula on the mean features of a task
GRID: dict[str, tuple[Any, Any]] = {"mapping-net": (lambda per: MappingNet(hidden=6, per=per), by_hand)}
#: what takes a generator and is none by itself
CONTROLS = {"OtherTask"}


def test_every_generator_is_in_the_grid() -> None:
    assert set(GRID) == set(registry.names)
    assert set(registry) == {*registry.names.values(), *CONTROLS, "Generator"}


def parameters(net: Any) -> Tensors:
    random = torch.Generator().manual_seed(0)
    start = net.start(SEEDS, 5, random)
    return {name: torch.randn(value.shape, generator=random) for name, value in start.items()}


@pytest.mark.parametrize("name", GRID)
def test_the_formula_per_task_and_per_input(name: str) -> None:
    make, formula = GRID[name]
    features = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    for per in ("task", "input"):
        net = make(per)
        p = parameters(net)
        found = net(p, SEEDS, features, None)
        for t in range(2):
            if per == "task":
                expected = formula(p, features[t].mean(0))
            else:
                rows = [formula(p, features[t, b]) for b in range(4)]
                expected = {seed: torch.stack([row[seed] for row in rows]) for seed in SEEDS}
            for seed in SEEDS:
                torch.testing.assert_close(found[seed][t], expected[seed])


@pytest.mark.parametrize("name", GRID)
def test_training_starts_as_lora(name: str) -> None:
    net = GRID[name][0]("task")
    start = net.start(SEEDS, 5, torch.Generator().manual_seed(0))
    written = net(start, SEEDS, torch.randn(2, 4, 5), None)
    assert {seed: tuple(value.shape) for seed, value in written.items()} == {
        seed: (2, *shape) for seed, shape in SEEDS.items()
    }
    assert not any(value.any() for value in written.values())
    again = net.start(SEEDS, 5, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, again[parameter]) for parameter, value in start.items())


@pytest.mark.parametrize("name", GRID)
def test_masked_items_do_not_count(name: str) -> None:
    net, features = GRID[name][0]("task"), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    found = net(parameters(net), SEEDS, features, mask)
    first = net(parameters(net), SEEDS, features[:1, :2], None)
    torch.testing.assert_close(found["a.seed"][:1], first["a.seed"])


def test_the_control_feeds_the_next_tasks_features() -> None:
    net, features = MappingNet(hidden=6), torch.randn(3, 4, 5)
    p = parameters(net)
    own, other = net(p, SEEDS, features, None), OtherTask(net)(p, SEEDS, features, None)
    torch.testing.assert_close(other["a.seed"], own["a.seed"][[2, 0, 1]])
    with pytest.raises(ValueError, match="no other"):
        OtherTask(net)(p, SEEDS, features[:1], None)


def test_features_of_a_module_of_its_own() -> None:
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 7)).double()
    net = MappingNet(hidden=4, features=own, size=7)
    learner, _ = learner_of(
        "cp", inner=mp.inner.SGD(1, 0.1), head="prototype-init", generator=net, outer=("generator",)
    )
    batch = images()
    found = learner.objectives(batch, training=True).passes.features()["support"]
    expected = torch.stack([own(batch.support_x[t]) for t in range(2)]).detach()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not found.requires_grad
    assert learner.hypergradient(batch).grads["generator.hidden.weight"].shape == (4, 7)
    assert all(value.grad is None for value in own.parameters())
    with pytest.raises(ValueError, match="size="):
        MappingNet(features=own)


def test_features_of_a_module_are_frozen_and_tell_runs_apart(tmp_path: Path) -> None:
    """Dropout and batch norm of a module in training mode, as torch makes it, neither act nor change."""

    def module(seed: int) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [
                torch.nn.Flatten(),
                torch.nn.Linear(64, 7),
                torch.nn.BatchNorm1d(7),
                torch.nn.Dropout(0.5),
            ]
            return torch.nn.Sequential(*layers)

    data = ImageData(torch.arange(256).view(4, 1, 8, 8).to(torch.uint8), [0, 0, 1, 1], ["a", "b"])
    episodes = mp.EpisodeSampler(data, 2, 1, 1)
    own = module(0)
    before = copy.deepcopy(own.state_dict())
    body = mp.backbones.mlp(64, 2, hidden=(4,))
    options = {"format": mp.CP(2), "inner": mp.inner.SGD(2, 0.1)}
    learner = mp.methods.metapeft(
        body, generator=MappingNet(hidden=4, features=own, size=7), dtype=torch.float64, **options
    )
    first, second = (learner.hypergradient(episodes.batch(0, 4)).grads for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert own.training
    by_two = mp.evaluate(learner, episodes, 4, tasks_per_batch=2).losses
    torch.testing.assert_close(
        mp.evaluate(learner, episodes, 4, tasks_per_batch=4).losses, by_two, rtol=1e-10, atol=0
    )
    mp.BilevelTrainer(learner, progress=False).fit(episodes, 1, run_dir=tmp_path / "run")
    again = mp.load(tmp_path / "run", generator=MappingNet(hidden=4, features=own, size=7))
    assert torch.equal(mp.evaluate(again, episodes, 4).losses, mp.evaluate(learner, episodes, 4).losses)
    with pytest.raises(ValueError, match=r"generator= \(its features\) is"):
        mp.load(tmp_path / "run", generator=MappingNet(hidden=4, features=module(1), size=7))


@pytest.mark.parametrize("change", [{"hidden": 0}, {"hidden": True}, {"per": "tasks"}])
def test_bad_settings(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        MappingNet(**change)  # type: ignore[arg-type]


def test_seeds_follow_the_current_weights_without_a_gradient() -> None:
    """Features come from the body with the current W0; W0 gets no gradient through them."""
    learner, net = learner_of("cp", head="prototypes", generator=MappingNet(hidden=4), outer=("generator",))
    batch = images()
    before = learner.objectives(batch, training=False).passes.features()["support"]
    torch.testing.assert_close(
        before,
        torch.stack([net.eval().features(batch.support_x[t]) for t in range(2)]).detach(),
        rtol=1e-12,
        atol=0,
    )
    learner.variables["weights.hidden.weight"].mul_(2.0)
    after = learner.objectives(batch, training=False).passes.features()["support"]
    assert not torch.allclose(before, after)
    assert F.layer_norm(after, after.shape[-1:]).shape == before.shape

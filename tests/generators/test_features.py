"""Where a generator's features come from: a module of its own, frozen or trained, the inputs, the body."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.datasets.images import ImageData
from metapeft.generators import Blind, ClassEncoder, MappingNet
from tests.learner.helpers import images, learner_of


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


def test_the_inputs_themselves() -> None:
    net = MappingNet(hidden=4, features="inputs", size=16)
    learner, _ = learner_of("cp", head="prototypes", generator=net, outer=("generator",))
    batch = images()
    found = learner.objectives(batch, training=True).passes.features()["support"]
    torch.testing.assert_close(found, batch.support_x.flatten(2), rtol=0, atol=0)
    wrong = MappingNet(hidden=4, features="inputs", size=15)
    learner, _ = learner_of("cp", head="prototypes", generator=wrong, outer=("generator",))
    with pytest.raises(ValueError, match=r"size= says"):
        learner.hypergradient(batch)
    with pytest.raises(ValueError, match="'inputs'"):
        MappingNet(features="input", size=3)  # type: ignore[arg-type]


def embedding() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3), torch.nn.Tanh()).double()


def test_a_module_that_is_trained_gets_the_gradient_of_finite_differences(tmp_path: Path) -> None:
    net = ClassEncoder(hidden=4, features=embedding(), size=3, train_features=True)
    learner, body = learner_of(
        "cp", inner=mp.inner.SGD(2, 0.1), head="prototype-init", generator=net, outer=("generator",)
    )
    batch, name = images(), "generator.embedder.1.weight"
    found = learner.hypergradient(batch)
    assert {n for n in found.grads if "embedder" in n} == {name, "generator.embedder.1.bias"}
    random, eps = torch.Generator().manual_seed(3), 1e-6
    direction = torch.randn(3, 16, generator=random, dtype=torch.float64)
    values = []
    for sign in (1, -1):
        learner.variables[name].add_(sign * eps * direction)
        values.append(float(learner.hypergradient(batch).value))
        learner.variables[name].sub_(sign * eps * direction)
    torch.testing.assert_close(
        float((found.grads[name] * direction).sum()),
        (values[0] - values[1]) / (2 * eps),
        rtol=1e-6,
        atol=1e-10,
    )
    assert found.grads[name].any()
    mp.save(learner, tmp_path / "run")
    again = mp.load(tmp_path / "run", backbone=body, generator=net)
    assert torch.equal(again.variables[name], learner.variables[name])


def test_a_trained_module_under_forward_mode_and_blind() -> None:
    net = MappingNet(hidden=4, features=embedding(), size=3, train_features=True)
    options = {"inner": mp.inner.SGD(1, 0.1), "head": "prototype-init", "outer": ("generator",)}
    learner, _ = learner_of("cp", generator=net, **options)
    expected = learner.hypergradient(images()).grads
    found = learner.with_engine("forward").hypergradient(images()).grads
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    blind, _ = learner_of("cp", generator=Blind(net), **options)
    assert not any("embedder" in name for name in blind.trained)
    with pytest.raises(ValueError, match="train_features"):
        MappingNet(train_features=True)

"""A learner comes back from its run folder with the same predictions; what is of the user's own is asked for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.state import digest
from metapeft.base.stored_settings import as_json
from metapeft.learner import settings as specs
from tests.training.helpers import PLAN, dropping, learner, sampler, trainer


def fitted(task: mp.Learner, folder: Path) -> mp.Learner:
    options: dict[str, Any] = {"kind": "any", "chunk": None}
    trainer(task, **options).fit(sampler(), 2, run_dir=folder)
    return task


def bodies() -> dict[str, torch.nn.Module]:
    conv = {"ways": 3, "channels": 1, "width": 4, "size": 16}
    return {
        "conv4": mp.backbones.conv4(**conv),
        "resnet12": mp.backbones.resnet12(**conv),
        "mixer": mp.backbones.mixer(ways=3, channels=1, patch=4, width=8, depth=1, size=16),
        "vit": mp.backbones.vit(ways=3, channels=1, patch=4, width=8, depth=1, heads=2, size=16),
        "mlp": mp.backbones.mlp(256, 3, hidden=(8,)),
    }


@pytest.mark.parametrize("kind", ["metapeft", "warm", "protonet"])
def test_a_learner_comes_back(kind: str, tmp_path: Path) -> None:
    own = trainer(kind=kind)
    own.fit(sampler(), 4, sampler("val"), tmp_path / "x", **PLAN)
    again = mp.load(tmp_path / "x")
    assert digest(again.state()) == digest(own.learner.state())
    assert again.settings() == own.learner.settings()
    results = [mp.evaluate(one, sampler("val"), 4) for one in (own.learner, again)]
    assert torch.equal(results[0].losses, results[1].losses)
    latest = mp.load(tmp_path / "x", "latest")
    fresh = trainer(kind=kind)
    fresh.fit(sampler(), 4)
    assert digest(latest.state()) == digest(fresh.learner.state())


@pytest.mark.parametrize("name", ["conv4", "resnet12", "mixer", "vit", "mlp"])
def test_backbones_know_how_they_were_made(name: str) -> None:
    body = bodies()[name]
    made = as_json(specs.of_backbone(body))
    again = mp.backbones.registry.resolve(made["name"])(**made["arguments"])
    assert digest(dict(again.state_dict())) == digest(dict(body.state_dict()))
    assert specs.of_backbone(copy.deepcopy(body)) == specs.of_backbone(body)


PARTS: list[dict[str, Any]] = [
    {"hypergradient": mp.hypergradients.CG(iterations=3, damping=1.0), "outer": ("weights",)},
    {"inner": mp.inner.Adam(2, 0.01)},
    {"inner": mp.inner.Momentum(2, torch.tensor(0.1))},
    {"head": mp.heads.Ridge(penalty=2.0)},
    {"format": mp.TensorRing((1, 2, 1)), "generator": None},
    {"generator": mp.generators.MappingNet(hidden=3, per="input"), "adapt": ["*.A"]},
    {"inner_data": "both", "test_steps": 7, "norm": "transductive", "targets": "conv*", "adapt": ["conv1*"]},
    {"selection": None, "dtype": torch.float64, "loss": torch.nn.functional.cross_entropy},
]


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")
@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.IndefiniteHessian")
@pytest.mark.parametrize("options", PARTS, ids=[next(iter(part)) for part in PARTS])
def test_every_part_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    body = mp.backbones.conv4(ways=3, channels=1, width=4, size=16)
    preprocess = sampler().dataset.preprocess
    given = {
        "format": mp.CP(2),
        "inner": mp.inner.SGD(1, 0.05),
        **({} if "generator" in options else {"hidden": 3}),
        "preprocess": preprocess,
        **options,
    }
    own = fitted(mp.methods.metapeft(body, **given), tmp_path / "x")
    again = mp.load(tmp_path / "x")
    assert again.settings() == own.settings()
    batch = sampler().batch(0, 2)
    first, second = (one.adapt_many(batch.support_x, batch.support_y)(batch.query_x) for one in (own, again))
    assert torch.equal(first, second)


class Own(torch.nn.Module):
    """A backbone that no registry knows."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(256, width)
        self.classifier = torch.nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(self.hidden(x.flatten(1))))


def own_loss(outputs: torch.Tensor, y: torch.Tensor, reduction: str) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, y, reduction=reduction)


def test_what_is_of_the_users_own_is_asked_for(tmp_path: Path) -> None:
    body = Own()
    model = mp.attach(body, mp.LoRA(1), preprocess=lambda x: x / 255)
    rate = mp.inner.SGD(2, lambda u: 0.1)
    own = fitted(mp.Learner(model, rate, loss=own_loss), tmp_path / "x")
    given: dict[str, Any] = {
        "backbone": Own(), "loss": own_loss, "preprocess": model.preprocess, "inner": rate,
    }  # fmt: skip
    for part in given:
        rest = {name: value for name, value in given.items() if name != part}
        with pytest.raises(ValueError, match=f"{part}= is missing"):
            mp.load(tmp_path / "x", **rest)
    again = mp.load(tmp_path / "x", **given)
    assert digest(again.state()) == digest(own.state())
    with pytest.raises(ValueError, match=r"weights.hidden.weight of shape \(4, 256\)"):
        mp.load(tmp_path / "x", **{**given, "backbone": Own(5)})


def test_frozen_weights_must_be_the_same(tmp_path: Path) -> None:
    body = Own()
    body.hidden.requires_grad_(False)
    fitted(mp.Learner(mp.attach(body, mp.LoRA(1)), mp.inner.SGD(1, 0.1)), tmp_path / "x")
    mp.load(tmp_path / "x", backbone=body)
    with torch.no_grad():
        body.hidden.bias.add_(1.0)
    with pytest.raises(ValueError, match="frozen parameters"):
        mp.load(tmp_path / "x", backbone=body)


def test_stored_settings_win(tmp_path: Path) -> None:
    fitted(learner("warm"), tmp_path / "x")
    mp.load(tmp_path / "x", loss=torch.nn.functional.cross_entropy, head=mp.heads.PrototypeInit())
    for part, value in {
        "loss": torch.nn.functional.mse_loss,
        "inner": mp.inner.SGD(3, 0.05),
        "head": mp.heads.Zero(),
        "hypergradient": mp.hypergradients.Unroll(),
        "backbone": mp.backbones.conv4(ways=3, width=5, size=16),
    }.items():
        with pytest.raises(ValueError, match="stored settings win"):
            mp.load(tmp_path / "x", **{part: value})


def test_dropout_is_stored(tmp_path: Path) -> None:
    """It is built again, another value is refused, and a run from before there was any goes on without."""
    own = trainer(kind="dropout")
    own.fit(sampler(), 2, run_dir=tmp_path / "x")
    again = mp.load(tmp_path / "x", backbone=dropping())
    assert again.dropout
    assert again.settings() == own.learner.settings()
    assert digest(again.state()) == digest(own.learner.state())
    first, second = (one.hypergradient(sampler().batch(7, 2)) for one in (own.learner, again))
    assert digest(dict(first.grads)) == digest(dict(second.grads))
    without = trainer(learner("dropout", dropout=False), "dropout")
    with pytest.raises(ValueError, match=r"learner.dropout is None here, but the run was started with True"):
        without.resume(tmp_path / "x", sampler())
    without.fit(sampler(), 2, run_dir=tmp_path / "y", stop_at=1)
    with pytest.raises(ValueError, match=r"learner.dropout is True here, but the run was started with None"):
        trainer(kind="dropout").resume(tmp_path / "y", sampler())
    config = tmp_path / "y" / "config.json"
    stored = json.loads(config.read_text())
    del stored["learner"]["dropout"], stored["sealed"], stored["sha256"]
    config.write_text(json.dumps(stored))
    trainer(learner("dropout", dropout=False), "dropout").resume(tmp_path / "y", sampler())
    assert not mp.load(tmp_path / "y", backbone=dropping()).dropout


def test_what_is_no_learners_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(mp.RunError, match="no such folder"):
        mp.load(tmp_path / "none")
    mp.pretrain(
        mp.backbones.conv4(width=4, size=16),
        sampler().dataset,
        1,
        group=8,
        run_dir=tmp_path / "sr",
        progress=False,
    )
    with pytest.raises(mp.RunError, match="no run of a learner"):
        mp.load(tmp_path / "sr")
    fitted(learner("warm"), tmp_path / "x")
    with pytest.raises(mp.RunError, match="best"):
        mp.load(tmp_path / "x", "best")
    with pytest.raises(ValueError, match="checkpoint='last'"):
        mp.load(tmp_path / "x", "last")
    for name in ("config.json", "environment.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(mp.RunError, match=r"in it are .*x"):
        mp.load(tmp_path)


class OwnFormat(mp.LoRA):
    """A format of the user's own."""


@pytest.mark.parametrize("targets", ["all", "hidden.weight"])
def test_a_format_of_the_user_s_own_is_given_as_it_was_attached(targets: str, tmp_path: Path) -> None:
    body, inner = Own(), mp.inner.SGD(2, 0.1)
    own = fitted(mp.Learner(mp.attach(body, {targets: OwnFormat(1)}), inner, head="zero"), tmp_path / "x")
    with pytest.raises(ValueError, match="formats= is missing"):
        mp.load(tmp_path / "x", backbone=Own())
    again = mp.load(tmp_path / "x", backbone=Own(), formats={targets: OwnFormat(1)})
    assert digest(again.state()) == digest(own.state())
    for wrong in (mp.LoRA(1), {"hidden.bias": mp.Full()}):
        with pytest.raises(ValueError, match=r"formats"):
            mp.load(tmp_path / "x", backbone=Own(), formats=wrong)


def test_a_learner_is_kept_without_training(tmp_path: Path) -> None:
    own = mp.methods.sr_lora(mp.backbones.conv4(ways=3, channels=1, width=4, size=16), rank=1)
    mp.save(own, tmp_path / "x", sampler())
    again = mp.load(tmp_path / "x")
    assert digest(again.state()) == digest(own.state())
    with pytest.raises(mp.RunError, match="holds a run already"):
        mp.save(own, tmp_path / "x", sampler())
    (tmp_path / "x" / "checkpoints" / "latest.safetensors").unlink()  # as if killed before it was written
    with pytest.raises(mp.RunError, match="another learner"):
        mp.save(own, tmp_path / "x")
    mp.save(own, tmp_path / "x", sampler())
    assert digest(mp.load(tmp_path / "x").state()) == digest(own.state())

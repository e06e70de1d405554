"""A moving average of the state: by hand, through checkpoints, and in standard retraining with its other options."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.base.state import digest
from metapeft.training.image_groups import ImageGroupSampler
from metapeft.training.retraining_task import Pretraining
from tests.training.helpers import data, learner, sampler

CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}  # float32


def body() -> torch.nn.Module:
    return mp.backbones.conv4(ways=3, channels=1, width=4, size=16)


def trained(steps: int, ema: float | None = 0.7, **options: Any) -> tuple[mp.Learner, mp.BilevelTrainer]:
    one = learner("maml")
    trainer = mp.BilevelTrainer(one, lr=0.1, tasks_per_step=2, progress=False, ema=ema)
    trainer.fit(sampler(), steps, **options)
    return one, trainer


def test_the_learner_ends_with_the_average_of_its_steps() -> None:
    states = [learner("maml").state()] + [trained(steps, None)[0].state() for steps in (1, 2, 3)]
    average = states[0]
    for k, state in enumerate(states[1:], 1):
        decay = min(0.7, (1 + k) / (10 + k))
        average = {
            name: decay * value + (1 - decay) * state[name] if value.is_floating_point() else state[name]
            for name, value in average.items()
        }
    found = trained(3)[0].state()
    moved = [name for name in average if not torch.equal(average[name], states[0][name])]
    assert moved
    for name in average:
        torch.testing.assert_close(found[name], average[name], **CLOSE)
    assert not torch.allclose(found[moved[0]], states[3][moved[0]], **CLOSE)


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    expected = trained(6, run_dir=tmp_path / "whole")[0].state()
    trained(6, run_dir=tmp_path / "cut", stop_at=4)
    one = learner("maml")
    trainer = mp.BilevelTrainer(one, lr=0.1, tasks_per_step=2, progress=False, ema=0.7)
    trainer.resume(tmp_path / "cut", sampler())
    assert digest(one.state()) == digest(expected)
    assert digest(mp.load(tmp_path / "cut").state()) == digest(expected)
    other = mp.BilevelTrainer(learner("maml"), lr=0.1, tasks_per_step=2, progress=False, ema=0.8)
    with pytest.raises(ValueError, match=r"trainer\.ema"):
        other.resume(tmp_path / "cut", sampler())


def test_the_average_is_what_is_validated() -> None:
    one, trainer = trained(4, validation=sampler("val"), validate_every=2, validation_episodes=4)
    found = mp.evaluate(one, sampler("val"), episodes=4)
    assert trainer.best == pytest.approx(found.accuracy)


@pytest.mark.parametrize("ema", [0, 1.0, -0.1, "0.9", True])
def test_no_decay(ema: Any) -> None:
    with pytest.raises(ValueError, match=r"ema=.*: allowed is a finite number above 0 and below 1"):
        mp.BilevelTrainer(learner("maml"), ema=ema)


def test_retraining_with_a_cosine_head_and_another_loss() -> None:
    """One step of gradient descent, by hand in train mode."""
    images, own = data(), body()
    smooth = functools.partial(F.cross_entropy, label_smoothing=0.1)
    options: dict[str, Any] = {
        "group": 8, "groups": 1, "lr": 0.1, "optimizer": torch.optim.SGD, "schedule": None, "progress": False,
        "head": "cosine", "loss": smooth, "options": {"weight_decay": 0.01},
    }  # fmt: skip
    found, log = mp.pretrain(own, images, 1, **options)
    net = body().train()
    net.classifier = torch.nn.Identity()
    weight = Pretraining(mp.attach(own, {}), len(images.classes), head="cosine").variables["softmax.weight"]
    batch = ImageGroupSampler(images, 8, 0).batch(0, 1)
    features = F.normalize(net(images.preprocess(batch.x[0])), dim=-1)
    loss = smooth(10.0 * features @ F.normalize(weight, dim=-1).T, batch.y[0])
    parameters = dict(net.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()))
    assert log[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, value), grad in zip(parameters.items(), grads):
        expected = value - 0.1 * (grad + 0.01 * value)
        torch.testing.assert_close(found.get_parameter(name), expected, **CLOSE)


def test_retraining_ends_with_the_best_state_of_the_validation_classes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"group": 8, "groups": 1, "lr": 0.05, "progress": False, "ema": 0.5}
    validation = sampler("val")
    found, log = mp.pretrain(
        body(), data(), 4, validation=validation, validate_every=1, validation_episodes=6, run_dir=tmp_path / "x",
        **options,
    )  # fmt: skip
    scores = [row["validation_accuracy"] for row in log if "validation_accuracy" in row]
    assert len(scores) == 4
    head = mp.heads.Prototypes(normalize="l2")
    best = mp.evaluate(
        mp.methods.centroids(found, head=head, preprocess=data().preprocess), validation, episodes=6
    ).accuracy
    assert best == pytest.approx(max(scores))
    with pytest.raises(ValueError, match=r"trainer\.ema"):
        mp.pretrain(
            body(), data(), 4, validation=validation, validate_every=1, validation_episodes=6, run_dir=tmp_path / "x",
            resume=True, **{**options, "ema": 0.6},
        )  # fmt: skip


def test_what_retraining_refuses() -> None:
    with pytest.raises(ValueError, match="head='ridge': allowed are 'linear' and 'cosine'"):
        mp.pretrain(body(), data(), 1, group=8, head="ridge", progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one value an image"):
        mp.pretrain(body(), data(), 1, group=8, progress=False, loss=lambda logits, y: logits.mean())

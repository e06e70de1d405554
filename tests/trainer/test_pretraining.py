"""Standard retraining: ordinary training on groups of images, with a temporary softmax, on a copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.pretraining import GroupSampler
from metapeft.runs import Run
from metapeft.specs import digest
from tests.trainer.helpers import data


def body() -> torch.nn.Module:
    return mp.backbones.conv4(ways=3, channels=1, width=4, size=16)


def test_one_group_is_ordinary_training() -> None:
    """One group a step, so torch's train mode takes the same statistics and moves the buffers alike."""
    images, own = data(), body()
    found, log = mp.pretrain(
        own, images, 3, group=8, groups=1, lr=0.1, optimizer=torch.optim.SGD, schedule=None, progress=False
    )
    net = body().train()
    from metapeft.pretraining import Pretraining

    start = Pretraining(mp.attach(own, {}), len(images.classes)).variables
    weight, bias = (start[f"softmax.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    classifier = dict(net.classifier.named_parameters())
    net.classifier = torch.nn.Identity()
    optimizer = torch.optim.SGD([*net.parameters(), weight, bias], lr=0.1)
    for step in range(3):
        batch = GroupSampler(images, 8, 0).batch(step, 1)
        optimizer.zero_grad()
        F.cross_entropy(F.linear(net(images.preprocess(batch.x[0])), weight, bias), batch.y[0]).backward()
        optimizer.step()
    for name, value in net.state_dict().items():  # float32
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for name, value in classifier.items():
        assert torch.equal(found.classifier.state_dict()[name], value)
    assert log[-1]["step"] == 3
    assert digest(dict(own.state_dict())) == digest(dict(body().state_dict()))


def test_it_resumes(tmp_path: Path) -> None:
    options = {"group": 8, "groups": 2, "progress": False}
    whole, _ = mp.pretrain(body(), data(), 4, **options)
    mp.pretrain(body(), data(), 4, run_dir=tmp_path / "x", **options)
    with pytest.raises(ValueError, match=r"episodes\.groups\.seed"):
        mp.pretrain(body(), data(), 4, run_dir=tmp_path / "x", resume=True, seed=1, **options)
    again, _ = mp.pretrain(body(), data(), 4, run_dir=tmp_path / "x", resume=True, **options)
    assert digest(dict(again.state_dict())) == digest(dict(whole.state_dict()))


def test_a_cap_on_the_memory_cuts_the_groups_and_is_kept(tmp_path: Path) -> None:
    options = {"group": 8, "groups": 4, "progress": False, "dtype": torch.float64}
    whole, _ = mp.pretrain(body(), data(), 4, **options)
    assert next(whole.parameters()).dtype == torch.float64
    capped, _ = mp.pretrain(body(), data(), 4, memory="1MiB", run_dir=tmp_path / "x", **options)
    with Run.open(tmp_path / "x", writable=False) as run:
        assert run.config["trainer"]["memory"] == 2**20
        assert run.load("latest")[0]["chunking"]["chunk"] == 1  # less than one group fits: one at a time
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(capped.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    again, _ = mp.pretrain(body(), data(), 4, memory="1MiB", run_dir=tmp_path / "x", resume=True, **options)
    assert digest(dict(again.state_dict())) == digest(dict(capped.state_dict()))
    with pytest.raises(ValueError, match="memory"):
        mp.pretrain(body(), data(), 4, memory="2MiB", run_dir=tmp_path / "x", resume=True, **options)


def test_calibration_is_the_mean_over_groups() -> None:
    images, own = data(), body()
    model = mp.calibrate(mp.attach(own, {}, preprocess=images.preprocess), images, groups=3, group=16)
    means = []
    for i in range(3):
        batch = GroupSampler(images, 16, 0).batch(i, 1)
        means.append(own.conv1(images.preprocess(batch.x[0])).mean((0, 2, 3)))
    found = model.module.norm1.running_mean
    torch.testing.assert_close(found, torch.stack(means).mean(0).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(own.norm1.running_mean, found)

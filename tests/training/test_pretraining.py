"""Standard retraining: ordinary training on groups of images, with a temporary softmax, on a copy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.base.state import digest
from metapeft.training.chunking import Chunking
from metapeft.training.image_groups import ImageGroupSampler
from metapeft.training.retraining_task import Pretraining
from metapeft.training.runs.run import Run
from tests.training.helpers import data


def body() -> torch.nn.Module:
    return mp.backbones.conv4(ways=3, channels=1, width=4, size=16)


def test_one_group_is_ordinary_training() -> None:
    """One group a step, so torch's train mode takes the same statistics and moves the buffers alike."""
    images, own = data(), body()
    found, log = mp.pretrain(
        own, images, 3, group=8, groups=1, lr=0.1, optimizer=torch.optim.SGD, schedule=None, progress=False
    )
    net = body().train()
    start = Pretraining(mp.attach(own, {}), len(images.classes)).variables
    weight, bias = (start[f"softmax.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    classifier = dict(net.classifier.named_parameters())
    net.classifier = torch.nn.Identity()
    optimizer = torch.optim.SGD([*net.parameters(), weight, bias], lr=0.1)
    for step in range(3):
        batch = ImageGroupSampler(images, 8, 0).batch(step, 1)
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
        batch = ImageGroupSampler(images, 16, 0).batch(i, 1)
        means.append(own.conv1(images.preprocess(batch.x[0])).mean((0, 2, 3)))
    found = model.module.norm1.running_mean
    torch.testing.assert_close(found, torch.stack(means).mean(0).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(own.norm1.running_mean, found)


FOUR = {"group": 8, "groups": 4, "progress": False}


def chosen(folder: Path) -> dict[str, Any]:
    """The chunking that a run keeps."""
    with Run.open(folder, writable=False) as run:
        found: dict[str, Any] = run.load("latest")[0]["chunking"]
    return found


def short_in_step_2(folder: Path, monkeypatch: pytest.MonkeyPatch, dies: bool) -> torch.nn.Module | None:
    """Retraining that is short of memory once, in step 2 of 5, and may die in step 4."""
    calls, true, drawn = [], Pretraining.hypergradient, ImageGroupSampler.batch

    def limited(self: Any, batch: Any, w0: Any = None) -> Any:
        calls.append(len(batch))
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return true(self, batch, w0)

    def stopping(self: Any, start: int, count: int) -> Any:
        return 1 / 0 if dies and start == 12 else drawn(self, start, count)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "hypergradient", limited)
        patch.setattr(ImageGroupSampler, "batch", stopping)
        patch.setattr("metapeft.training.outer_gradient.choose", lambda *_: Chunking())
        if not dies:
            return mp.pretrain(body(), data(), 5, memory="8GiB", run_dir=folder, **FOUR)[0]
        with pytest.raises(ZeroDivisionError):
            mp.pretrain(body(), data(), 5, memory="8GiB", run_dir=folder, **FOUR)
    return None


def test_a_run_whose_chunk_was_halved_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = short_in_step_2(tmp_path / "whole", monkeypatch, dies=False)
    short_in_step_2(tmp_path / "died", monkeypatch, dies=True)
    assert chosen(tmp_path / "died")["chunk"] == 2  # kept at once
    again, _ = mp.pretrain(body(), data(), 5, memory="8GiB", run_dir=tmp_path / "died", resume=True, **FOUR)
    assert whole is not None
    assert digest(dict(again.state_dict())) == digest(dict(whole.state_dict()))


def test_one_group_is_too_much(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {**FOUR, "groups": 1, "memory": "1B"}
    with caplog.at_level(logging.WARNING, "metapeft"):
        mp.pretrain(body(), data(), 1, **options)
    assert "one task does not fit into 0.0 B: it is tried all the same" in caplog.text

    def short(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Pretraining, "hypergradient", short)
    with pytest.raises(MemoryError, match="take a smaller group of images"):
        mp.pretrain(body(), data(), 1, **options)


def test_device_and_dtype_are_those_of_the_copy(tmp_path: Path) -> None:
    own, options = body(), {**FOUR, "lr": 0.1, "optimizer": torch.optim.SGD}
    found, _ = mp.pretrain(
        own, data(), 2, device="cpu", dtype=torch.float64, run_dir=tmp_path / "x", **options
    )
    single, _ = mp.pretrain(own, data(), 2, **options)
    assert {value.dtype for value in found.parameters()} == {torch.float64}
    assert {value.dtype for value in own.parameters()} == {torch.float32}
    exact, rounded = found.conv2.weight, single.conv2.weight
    torch.testing.assert_close(exact.float(), rounded, rtol=1e-3, atol=1e-5)  # float32, two steps
    assert not torch.equal(exact, rounded.double())
    with pytest.raises(ValueError, match=r"learner\.precision is 'bfloat16 forwards' here, .* 'float64'"):
        mp.pretrain(own, data(), 2, autocast=torch.bfloat16, run_dir=tmp_path / "x", resume=True, **options)
    with pytest.raises(ValueError, match="device='meta': allowed"):
        mp.pretrain(own, data(), 2, device="meta", **options)
    with pytest.raises(ValueError, match="parameters in float32"):
        mp.pretrain(own, data(), 2, autocast=torch.bfloat16, dtype=torch.float64, **options)


def test_forwards_in_bfloat16_train_almost_the_same_in_float32() -> None:
    options: dict[str, Any] = {**FOUR, "lr": 0.1, "optimizer": torch.optim.SGD}
    found, log = mp.pretrain(body(), data(), 2, autocast=torch.bfloat16, **options)
    exact, other = mp.pretrain(body(), data(), 2, **options)
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32, torch.int64}
    assert log[-1]["loss"] != other[-1]["loss"]
    assert log[-1]["loss"] == pytest.approx(other[-1]["loss"], rel=0.02)  # 8 bits of mantissa
    for name, value in exact.named_buffers():
        torch.testing.assert_close(found.get_buffer(name), value, rtol=0.02, atol=0.02)

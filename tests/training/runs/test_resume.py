"""A run that is stopped and resumed ends with the same weights and rows, bit for bit."""

from __future__ import annotations

import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.state import digest
from metapeft.training.runs.run import Run
from tests.training.helpers import PLAN, STEPS, go_on, learner, sampler, trainer
from tests.training.runs import killed
from tests.training.runs.killing import contents, last_step, wait_for

KINDS = tuple(killed.KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_exact(kind: str, tmp_path: Path) -> None:
    """With validation, schedule, clipping, chunks or warm start, stopped where nothing is due."""
    whole = trainer(kind=kind)
    log = whole.fit(sampler(), STEPS, sampler("val"), tmp_path / "whole", **PLAN)
    trainer(kind=kind).fit(sampler(), STEPS, sampler("val"), tmp_path / "parts", stop_at=3, **PLAN)
    trainer(kind=kind).resume(tmp_path / "parts", sampler(), sampler("val"), stop_at=8)
    last = trainer(kind=kind)
    again = last.resume(tmp_path / "parts", sampler(), sampler("val"))
    assert again == log
    assert digest(last.learner.state()) == digest(whole.learner.state())
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert texts[0] == texts[1]
    for name in ("latest", "best"):
        trees = [Run.open(tmp_path / run, writable=False).load(name)[0] for run in ("whole", "parts")]
        assert str(trees[0]) == str(trees[1])
    finished = trainer(kind=kind)
    finished.resume(tmp_path / "parts", sampler(), sampler("val"))
    assert digest(finished.learner.state()) == digest(whole.learner.state())


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    whole = trainer()
    whole.fit(sampler(), 2, run_dir=tmp_path / "x")
    (tmp_path / "x" / "checkpoints" / "latest.safetensors").unlink()
    again = trainer()
    again.resume(tmp_path / "x", sampler())
    assert digest(again.learner.state()) == digest(whole.learner.state())
    (tmp_path / "x" / "checkpoints" / "latest.safetensors").unlink()
    other = learner()
    other.variables["weights.conv1.bias"].add_(1.0)
    with pytest.raises(ValueError, match="start is"):
        trainer(other).resume(tmp_path / "x", sampler())


def test_fit_again_starts_afresh() -> None:
    first, second = learner(), learner()
    again, once = trainer(first), trainer(second)
    before = first.state()
    again.fit(sampler(), 3)
    first.load_state(before)
    assert again.fit(sampler(), 3) == once.fit(sampler(), 3)
    assert digest(first.state()) == digest(second.state())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_steps(kind: str, tmp_path: Path) -> None:
    """Ten times with everything that a learner can have, three times with the other kinds.

    Each kill comes at a random moment after a random step that was not done before, and well before the end.
    """
    whole, part = tmp_path / "whole", tmp_path / "killed"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.training.runs.preloaded"])

    def start(folder: Path) -> Any:
        process = server.Process(target=killed.go_on, args=(folder, kind), daemon=True)
        process.start()
        return process

    process = start(whole)
    process.join(300)
    assert process.exitcode == 0
    draw, reached, landed = random.Random(0), 0, []
    times, steps = killed.KINDS[kind]
    for _ in range(times):
        process = start(part)
        wait_for(part, reached + draw.randint(1, 9), process.is_alive)
        time.sleep(draw.uniform(0, 0.03))  # anywhere in a step, or in what follows it
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        reached = last_step(part)
        landed.append(reached)
    assert len(set(landed)) == times
    assert 0 < landed[0] <= landed[-1] < steps
    process = start(part)
    process.join(300)
    assert process.exitcode == 0
    assert part.with_suffix(".end").read_text() == whole.with_suffix(".end").read_text()
    found = contents(part)
    assert set(found) == {"checkpoints/best.safetensors", "checkpoints/latest.safetensors", "metrics.jsonl"}
    assert found == contents(whole)


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.helpers", str(tmp_path / "other"), "metapeft"]
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.strip()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert go_on(tmp_path / "own", "metapeft") == other
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 1e-2}, "trainer.lr"),
        ({"tasks_per_step": 2}, "trainer.tasks_per_step"),
        ({"clip": None}, "trainer.clip"),
        ({"optimizer": torch.optim.SGD}, "trainer.optimizer"),
    ],
)
def test_another_trainer_is_refused(change: dict[str, object], sentence: str, finished: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        trainer(**change).resume(finished, sampler())


def test_another_learner_or_other_episodes_are_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"learner\.inner_data"):
        trainer(learner(inner_data="both")).resume(finished, sampler())
    with pytest.raises(ValueError, match=r"learner\.method"):
        trainer(kind="protonet").resume(finished, sampler())
    other = mp.EpisodeSampler(sampler().dataset, 3, 1, 2, seed=1)
    with pytest.raises(ValueError, match=r"episodes\.sampler\.seed"):
        trainer().resume(finished, other)
    with pytest.raises(ValueError, match="episodes= is missing"):
        trainer().resume(finished)
    with pytest.raises(ValueError, match="validation"):
        trainer().resume(finished, sampler(), sampler("val"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "x"
    trainer().fit(sampler(), 1, run_dir=folder)
    return folder


def test_used_and_foreign_folders_are_refused(finished: Path, tmp_path: Path) -> None:
    before = (finished / "checkpoints" / "latest.safetensors").read_bytes()
    with pytest.raises(mp.RunError, match="holds a run already"):
        trainer().fit(sampler(), 1, run_dir=finished)
    assert (finished / "checkpoints" / "latest.safetensors").read_bytes() == before
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(mp.RunError, match="no run folder"):
        trainer().fit(sampler(), 1, run_dir=tmp_path)
    with pytest.raises(mp.RunError, match="no run folder"):
        trainer().resume(tmp_path, sampler())


def test_episodes_of_known_data_are_built_again(tmp_path: Path) -> None:
    def own() -> mp.BilevelTrainer:
        body = mp.backbones.mlp(1, 1, hidden=(4,))
        loss = torch.nn.functional.mse_loss
        return mp.BilevelTrainer(mp.methods.maml(body, norm="running", loss=loss), progress=False)

    train, val = (
        mp.EpisodeSampler(mp.load_dataset("sinusoid", split=split), 1, 5, 5) for split in ("train", "val")
    )
    whole = own()
    plan = {"validate_every": 2, "validation_episodes": 5}
    whole.fit(train, 4, val, tmp_path / "whole", **plan)
    own().fit(train, 4, val, tmp_path / "parts", stop_at=2, **plan)
    last = own()
    last.resume(tmp_path / "parts")
    assert digest(last.learner.state()) == digest(whole.learner.state())

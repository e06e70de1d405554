"""Folders whose classes have few images, and not equally many, through the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import metapeft as mp
from metapeft.cli import run
from metapeft.experiments.config import TrainConfig
from metapeft.experiments.learner_sections import episodes_section
from metapeft.experiments.main_job import checked_samplers
from metapeft.experiments.results import Results
from metapeft.training.runs.learner_in_run import save

SIZES = (1, 3, 4, 6, 8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`root/split/class`, with 1, 3, 4, 6 and 8 images a class in each split."""
    for split in ("train", "val", "test"):
        for k, count in enumerate(SIZES):
            folder = tmp_path / "images" / split / f"{split}{k}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (16, 16), (16 * k, 30 * i, 50)).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_lists(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--data", "folder", "--root", str(root), "--data-options", "size=16"]
    sizes, path = ["--ways", "3", "--shots", "2"], str(tmp_path / "list.json")
    assert run(["episodes", "dump", path, *own, *sizes, "--queries", "3"]) == 2
    assert "--small skip leaves out classes with fewer" in capsys.readouterr().err
    few = ["--episodes", "5"]
    for options, most in (
        (["--queries", "rest", "--small", "skip"], 6),
        (["--queries", "3", "--small", "cap"], 3),
        (["--queries", "2", "--small", "skip"], 2),
    ):
        assert run(["episodes", "dump", path, *own, *sizes, *few, *options]) == 0
        assert run(["episodes", "verify", path, *own]) == 0
        assert f"small classes: {options[-1]}" in capsys.readouterr().out
        assert len(json.loads(Path(path).read_text())["query_index"][0]) == 3 * most
    assert run(["episodes", "dump", path, *own, *sizes, "--queries", "all"]) == 2
    assert "'all' is no whole number" in capsys.readouterr().err


def test_a_run_and_its_evaluation(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig("folder", root, ("size=16",), ways=3, shots=2, queries=3, width=4, small="cap")
    found = checked_samplers(config)
    assert {part.small for part in (found.train, found.validation, *found.tests.values())} == {"cap"}
    episode = found.tests["plain"][0]
    assert not episode.query_mask.all()
    section = episodes_section(found, Results({}, {}, {}, []), None)
    assert str(section.figures[0]).count("<image") == 6 + int(episode.query_mask.sum())
    body = mp.backbones.conv4(3, channels=3, width=4, size=16)
    save(mp.methods.centroids(body, preprocess=found.data["train"].preprocess), tmp_path / "run", found.train)
    few = ["evaluate", str(tmp_path / "run"), "--episodes", "4"]
    assert run(few) == 0  # classes as in the run
    assert "3-way 2-shot 15-query x4, seed 1, small classes: cap" in capsys.readouterr().out
    assert run([*few, "--queries", "rest", "--small", "skip"]) == 0
    assert "rest-query x4" in capsys.readouterr().out
    assert run([*few, "--small", "refuse"]) == 2
    assert "--small skip leaves out" in capsys.readouterr().err


def test_an_exported_task_has_no_padding(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = mp.load_dataset("folder", root, "test", size=16)
    body = mp.backbones.conv4(3, channels=3, width=4, size=16)
    learner = mp.methods.lora_ml(body, rank=1, preprocess=data.preprocess)
    save(learner, tmp_path / "run", mp.EpisodeSampler(data, 3, (1, 2), 1, imbalanced=True, small="skip"))
    task = mp.EpisodeSampler(data, 3, (1, 2), 1, small="skip")[0]
    assert not task.support_mask.all()
    given: list[Any] = []
    adapt = mp.Learner.adapt

    def noted(self: mp.Learner, *args: Any, **options: Any) -> Any:
        given.append(options["mask"])
        return adapt(self, *args, **options)

    monkeypatch.setattr(mp.Learner, "adapt", noted)
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--seed", "0"]) == 0
    assert torch.equal(given[0], task.support_mask)

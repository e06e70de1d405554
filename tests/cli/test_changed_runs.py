"""A run folder whose files were changed, exchanged or copied in from elsewhere: one sentence, exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metapeft.cli import run

TINY = {
    "width": "4", "tasks-per-step": "1", "episodes": "2", "validation-episodes": "2", "queries": "2",
    "inner-lrs": "0.01", "inner-steps": "1", "pretrain-steps": "2", "steps": "2", "function-steps": "0",
    "threads": "1", "methods": "metapeft",
}  # fmt: skip
EVALUATE = ("evaluate", "{}/metapeft", "--episodes", "2", "--queries", "2")
RESUME = ("train", "--resume", "--out", "{}", "--quiet")
CONFIG, LATEST = "metapeft/config.json", "metapeft/checkpoints/latest.safetensors"
ELSE = "something else than a run stores there"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    options = [word for name, value in TINY.items() for word in (f"--{name}", value)]
    assert run(["train", "--out", str(folder), "--quiet", *options]) == 0
    return folder


def refused(folder: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said on the error stream, which has to be one sentence."""
    capsys.readouterr()
    assert run([word.format(folder) for word in command]) == 2
    said = capsys.readouterr().err
    assert said.startswith("metapeft: ")
    assert said.count("\n") == 1
    return said


CHANGES: dict[str, tuple[str, Callable[[Any], Any], tuple[str, ...], str]] = {
    "no object": (CONFIG, lambda config: [config], EVALUATE, "stores an object"),
    "no object, report": ("config.json", lambda config: [config], ("report", "{}"), "stores an object"),
    "backbone": (
        CONFIG, lambda config: config["learner"]["backbone"].update(arguments={"bogus": 1}), EVALUATE, ELSE,
    ),
    "dtype": (CONFIG, lambda config: config["learner"].update(dtype="banana"), EVALUATE, ELSE),
    "solver": (
        CONFIG, lambda config: config["learner"]["inner"]["fields"].update(bogus=1), EVALUATE, ELSE,
    ),
    "lacking": (CONFIG, lambda config: config["learner"].pop("head") and None, EVALUATE, "there is no 'head'"),
    "episodes": (CONFIG, lambda config: config["episodes"].update(sampler=3), EVALUATE, ELSE),
    "ways": ("config.json", lambda config: config["train"].update(ways="x"), ("report", "{}"), "ways='x'"),
    "width": ("config.json", lambda config: config["train"].update(width=8), RESUME, "of another size"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_changed_settings(name: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, change, command, message = CHANGES[name]
    folder = shutil.copytree(whole, tmp_path / "run")
    config = json.loads((folder / file).read_text())
    for name in ("sealed", "sha256"):  # which would say that it was changed
        config.pop(name, None)
    (folder / file).write_text(json.dumps(change(config) or config))
    assert message in refused(folder, command, capsys)


def test_the_best_checkpoint_copied_over_the_latest(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.copy(folder / LATEST.replace("latest", "best"), folder / LATEST)
    assert "latest.safetensors holds" in refused(folder, (*EVALUATE, "--checkpoint", "latest"), capsys)
    (folder / "results.json").unlink()
    assert "latest.safetensors holds" in refused(folder, RESUME, capsys)


@pytest.mark.parametrize("row", ['{"loss": 1}', "[1]", '{"step": "x"}'])
def test_a_row_of_metrics_without_its_step(
    row: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    with open(folder / "metapeft" / "metrics.jsonl", "a", encoding="utf-8") as metrics:
        metrics.write(row + "\n")
    assert "line" in refused(folder, RESUME, capsys)

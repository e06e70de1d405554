"""`metapeft train --memory`, and what torchrun starts again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metapeft.cli import run, train
from metapeft.experiments.config import TrainConfig
from metapeft.training.runs.run import Run


@pytest.mark.parametrize("text", ["8", "8 gigs", "0GiB"])
def test_memory_has_a_unit(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--memory", text]) == 2
    assert "as in 8GiB" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_runs_of_before_have_no_memory_in_their_settings() -> None:
    stored = train.plain_config(TrainConfig(ways=3))
    del stored["memory"]
    assert train.configured(stored, TrainConfig()) == TrainConfig(ways=3)
    with pytest.raises(ValueError, match="memory='8GiB', but the run was started with None"):
        train.configured(stored, TrainConfig(memory="8GiB"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The settings that the main job was started with, without its doing anything."""
    found: list[TrainConfig] = []
    monkeypatch.setattr(train, "_run", lambda config, *_: found.append(config) or 0)
    return found


def test_what_torchrun_starts_again_goes_on(
    calls: list[TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = ["train", "--ways", "3", "--memory", "8GiB"]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert run(arguments) == 2
    assert "--max-restarts needs --out" in capsys.readouterr().err
    arguments += ["--out", str(tmp_path / "x")]
    assert run(arguments) == 0
    assert run(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(arguments) == 0
    assert run([*arguments[:-1], str(tmp_path / "died before it was made")]) == 0
    assert [(config.ways, config.memory) for config in calls] == [(3, "8GiB")] * 3
    with Run.open(tmp_path / "x", writable=False) as stored:
        assert stored.config["train"]["memory"] == "8GiB"


def test_too_little_memory_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def short(*_: Any) -> int:
        raise MemoryError("outer step 1: out of memory with one task")

    monkeypatch.setattr(train, "_run", short)
    assert run(["train", "--out", str(tmp_path / "x")]) == 2
    assert "outer step 1: out of memory" in capsys.readouterr().err

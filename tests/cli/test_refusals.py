"""Commands, options and files of options that get one sentence and the exit code 2, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metapeft.cli import run
from metapeft.experiments.config import TrainConfig


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["episodes", "dump", "there.json", "--episodes", "0"], "--episodes 0"),
        (["episodes", "dump", "there.json", "--episodes", "-3"], "--episodes -3"),
        (["export", "run", "adapter", "--episode", "-1"], "--episode -1"),
        (["export", "run", "run"], "is there and not empty"),
        (["export", "run", "there.json"], "is there and not empty"),
        (["train", "--ways", "5.5"], "'5.5' is no whole number"),
        (["evaluate", "run", "--steps", "1.5"], "'1.5' is no whole number"),
        (["train", "--rank", "0"], "--rank 0"),
        (["--config", "folder.toml", "train", "--list"], "no such file"),
        (["train", "--inner-lrs", "nan"], "--inner-lrs[0]=nan: allowed is a finite number above 0"),
        (["train", "--inner-steps", "-3"], "--inner-steps[0]=-3: allowed is a whole number of at least 0"),
        (["train", "--backbone", "vit", "--width", "33", "--out", "new"], "--width 33"),
        (["train", "--episodes", "1"], "--episodes 1: an interval needs 2"),
        (["train", "--methods", "maml", "--methods", "maml"], "names one twice"),
        (["sweep", "--out", "run"], "run is no folder of a sweep and not empty"),
        (["train", "--threads", "1000000", "--out", "new"], "--threads 1000000: this machine has"),
    ],
)
def test_the_shell_says_it_in_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "there.json").write_text("kept")
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert (tmp_path / "there.json").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.toml", "run", "there.json"]


@pytest.mark.parametrize("options", [{"inner_lrs": (0.0,)}, {"inner_steps": (-1,)}])
def test_settings_are_checked_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="inner_"):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nested.json", '{"train": {"ways": 3}}', "'train' is a table"),
        ("unknown.json", '{"wayz": 3}', "did you mean 'ways'?"),
        ("strange.toml", "zzz = 3", "known are"),
        ("cut.json", '{"ways": 3', "cannot be read as json"),
        ("cut.yaml", "ways: [3", "cannot be read as yaml"),
        ("cut.toml", "ways = ", "cannot be read as toml"),
        ("list.json", "[1]", "is a list"),
        ("latin.json", b'{"ways": "\xe9"}', "cannot be read as json"),
        ("half.json", '{"ways": 5.5}', "'5.5' is no whole number"),
    ],
)
def test_a_file_of_options_is_named_when_it_is_wrong(
    name: str, content: str | bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(["--config", name, "train", "--list"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert name in error or "ways" in error

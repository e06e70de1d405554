"""Bad input that gets one clear sentence, at the edge and before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import metapeft as mp
from metapeft.cli import run
from metapeft.config import TrainConfig


def learner(method: str = "maml") -> mp.Learner:
    made: mp.Learner = getattr(mp.methods, method)(mp.backbones.mlp(4, 3, hidden=(8,)), norm="running")
    return made


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["episodes", "dump", "there.json", "--episodes", "0"], "episodes=0"),
        (["episodes", "dump", "there.json", "--episodes", "-3"], "episodes=-3"),
        (["export", "run", "adapter", "--episode", "-1"], "episode=-1"),
        (["export", "run", "run"], "is a run folder"),
        (["--config", "folder.toml", "train", "--list"], "no such file"),
        (["train", "--inner-lrs", "nan"], "inner_lrs has nan"),
        (["train", "--inner-steps", "-3"], "inner_steps has -3"),
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


def test_a_checkpoint_of_another_method_is_not_taken_over_partly(tmp_path: Path) -> None:
    body = mp.backbones.mlp(1, 1, hidden=(4,))
    episodes = mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, 5, 5)
    for name, rates in (("fixed", None), ("learned", "step")):
        inner = mp.inner.SGD(2, 0.01, rates=rates)
        outer = ("weights",) if rates is None else ("weights", "rates")
        own = mp.methods.maml(body, inner=inner, outer=outer, loss=mse, norm="running")
        mp.BilevelTrainer(own, progress=False).fit(episodes, steps=1, run_dir=tmp_path / name)
    for there, here, said in (("fixed", "learned", "lacks"), ("learned", "fixed", "has 'rates")):
        folder = tmp_path / f"{here}-foreign"
        shutil.copytree(tmp_path / here, folder)
        shutil.copy(tmp_path / there / "checkpoints" / "latest.safetensors", folder / "checkpoints")
        with pytest.raises(ValueError, match=f"the checkpoint {said}.*another method"):
            mp.load(folder, loss=mse)


def mse(outputs: Any, targets: Any, reduction: str = "none") -> Any:
    return (outputs - targets).square()


@pytest.mark.parametrize("lr", ["a", -1.0, float("nan"), float("inf"), True])
def test_outer_rates_are_numbers(lr: Any) -> None:
    with pytest.raises(ValueError, match="an outer rate is a finite number"):
        mp.BilevelTrainer(learner(), lr=lr, progress=False)


def test_a_data_set_is_no_sampler() -> None:
    data = mp.load_dataset("sinusoid")
    with pytest.raises(ValueError, match=r"without .batch.*EpisodeSampler"):
        mp.evaluate(learner(), data, 4)
    trainer = mp.BilevelTrainer(learner(), progress=False)
    with pytest.raises(ValueError, match=r"episodes is a .*EpisodeSampler"):
        trainer.fit(data, 1)


@pytest.mark.parametrize("options", [{"inner_lrs": (0.0,)}, {"inner_steps": (-1,)}])
def test_settings_are_checked_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="inner_"):
        TrainConfig(**options)

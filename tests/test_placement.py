"""Device and types in the shell: used, stored, and refused in a sentence before anything is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft import placement, precision
from metapeft.cli import run
from metapeft.cli.train import configured, plain_config
from metapeft.config import TrainConfig

TINY = [
    *("--width", "4", "--pretrain-steps", "1", "--steps", "1", "--tasks-per-step", "1", "--episodes", "2"),
    *("--validation-episodes", "2", "--queries", "2", "--inner-lrs", "0.01", "--inner-steps", "1"),
    *("--sinusoid-steps", "0", "--quiet", "--methods", "lora-ml", "--methods", "centroids"),
]


def test_a_run_in_float64_says_so_everywhere(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "x"
    assert run(["train", "--out", str(out), "--device", "cpu", "--dtype", "float64", *TINY]) == 0
    assert mp.load(out / "lora-ml").variables["weights.conv1.weight"].dtype == torch.float64
    results = json.loads((out / "results.json").read_text())
    assert results["config"]["dtype"] == "float64"
    assert results["rows"]["centroids"]["columns"]["plain"]["protocol"]["precision"] == "float64"
    assert run(["train", "--out", str(out), "--resume", "--dtype", "float32", *TINY]) == 2
    assert "dtype='float32', but the run was started with 'float64'" in capsys.readouterr().err
    options = ["--episodes", "2", "--queries", "2"]
    assert (
        run(["evaluate", str(out / "lora-ml"), "--autocast", "bfloat16", "--dtype", "float32", *options]) == 0
    )
    assert "bfloat16 forwards" in capsys.readouterr().out
    assert run(["evaluate", str(out / "lora-ml"), "--autocast", "bfloat16", *options]) == 2
    assert "--autocast off" in capsys.readouterr().err


@pytest.mark.parametrize(
    "device", ["meta", "nonsense", "cpu:1", *([] if torch.cuda.is_available() else ["cuda"])]
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--device", device, "--out", "x", *TINY]) == 2
    assert f"device={device!r}: allowed on this machine" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_leaving_out_means_the_cpu_and_float32() -> None:
    stored = plain_config(TrainConfig())
    assert configured(stored, TrainConfig(device="cpu", dtype="float32")) == TrainConfig()
    with pytest.raises(ValueError, match="dtype='float64', but the run was started with None"):
        configured(stored, TrainConfig(dtype="float64"))
    with pytest.raises(ValueError, match="autocast='bfloat16' goes with"):
        TrainConfig(dtype="float64", autocast="bfloat16")


def test_emulated_bfloat16_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    precision.note_emulated.cache_clear()
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    with caplog.at_level(logging.WARNING):
        placement.ask("cpu", None)
        assert not caplog.records
        placement.ask("cpu", "bfloat16")
        placement.ask("cpu", "bfloat16")
    assert len(caplog.records) == 1
    assert "emulates" in caplog.text
    precision.note_emulated.cache_clear()

"""`--device`, `--dtype`, `--autocast` and `--memory`: refused in a sentence, stored, and shown with the numbers."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from metapeft.base.machine import precision
from metapeft.cli import run, train
from metapeft.datasets import by_name
from metapeft.datasets.functions import Functions
from metapeft.datasets.images import ImageData
from metapeft.experiments import samplers
from metapeft.experiments.config import TrainConfig
from metapeft.training.runs.run import Run

SMALL = [
    *("--ways", "3", "--queries", "2", "--width", "4", "--pretrain-steps", "2", "--steps", "2"),
    *("--tasks-per-step", "2", "--episodes", "4", "--validation-episodes", "2", "--inner-lrs", "0.01"),
    *("--inner-steps", "1", "--function-steps", "2", "--methods", "metapeft,centroids", "--quiet"),
    "--no-modulated",  # which PEFT could not say
]


def tiny(name: str, split: str = "train", **options: Any) -> ImageData | Functions:
    if name == "functions":
        return Functions(split, **options)
    random = torch.Generator().manual_seed(len(split))
    images = torch.randint(0, 256, (160, 1, 16, 16), dtype=torch.uint8, generator=random)
    names = [f"{split}{n}" for n in range(8)]
    return ImageData(images, torch.arange(160) % 8, names, split, mean=[0.5], deviation=[0.3], name="tiny")


@pytest.fixture
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "load_dataset", tiny)
    monkeypatch.setattr(by_name, "load_dataset", tiny)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "gpu", "meta", "cpu:1"])
@pytest.mark.parametrize(
    "command", [["train"], ["bench"], ["evaluate", "nowhere"], ["export", "nowhere", "adapter"]]
)
def test_a_device_that_is_not_here_is_a_sentence_before_anything_is_written(
    command: list[str], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*command, "--device", device]) == 2
    assert f"--device {device}: allowed on this machine is 'cpu'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_gpu")
def test_a_run_from_a_machine_with_a_gpu_is_not_resumed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(train, "_run", lambda *_: 0)
    Run.create(tmp_path / "x", {"train": train.plain_config(TrainConfig(device="cuda"))}).close()
    assert run(["train", "--out", str(tmp_path / "x"), "--resume"]) == 2
    assert "--device cuda: allowed on this machine is 'cpu'" in capsys.readouterr().err


def dtypes(folder: Path) -> set[torch.dtype]:
    """Floating types of what a run trained."""
    with Run.open(folder, writable=False) as opened:
        tensors = opened.load("latest")[0]["learner"].values()
    return {value.dtype for value in tensors if value.is_floating_point()}


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_data")
def test_the_main_job_in_float64_within_a_stated_memory(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "x"
    asked = ["--device", "cpu", "--dtype", "float64", "--memory", "64GiB"]
    assert run(["train", *SMALL, *asked, "--out", str(folder)]) == 0, capsys.readouterr().err
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "norm running, float64, 95 % t" in shown
    trained = ["sr/run", "sr-continued/run", "metapeft", "functions/metapeft", "functions/lora-ml"]
    for part in trained:
        assert dtypes(folder / part) == {torch.float64}, part
        with Run.open(folder / part, writable=False) as opened:
            assert opened.config["trainer"]["memory"] == 64 << 30, part
    results = json.loads((folder / "results.json").read_text())
    cells = [cell for row in results["rows"].values() for cell in row["columns"].values()]
    assert {cell["protocol"]["precision"] for cell in cells} == {"float64"}
    assert "float64" in results["regression"]["protocol"]
    assert "float64" in (folder / "report.html").read_text()
    for other in (["--dtype", "float32"], ["--device", "cuda"], ["--autocast", "bfloat16"]):
        assert run(["train", "--out", str(folder), "--resume", *other]) == 2
        error = capsys.readouterr().err
        assert " ".join(other) in error
        assert "was started with" in error
    assert run(["train", "--out", str(folder), "--resume", "--quiet"]) == 0
    assert json.loads((folder / "results.json").read_text())["rows"] == results["rows"]
    method, options = str(folder / "metapeft"), ["--data", "glyphs", "--dtype", "float32"]
    sizes = ["--data", "glyphs", "--queries", "2", "--episodes", "4"]
    capsys.readouterr()
    for more, said in (
        ([], ", float64,"),
        (["--dtype", "float32", "--device", "cpu"], "norm running, head"),
        (["--dtype", "float32", "--autocast", "bfloat16"], "bfloat16 forwards"),
    ):
        assert run(["evaluate", method, *sizes, *more]) == 0
        assert said in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert run(["evaluate", method, *sizes, "--autocast", "bfloat16"]) == 2
    assert "--autocast off" in capsys.readouterr().err
    assert run(["export", method, str(tmp_path / "a"), *options]) == 0
    assert run(["export", method, str(tmp_path / "b"), *options, "--autocast", "bfloat16"]) == 0


@pytest.mark.usefixtures("tiny_data")
def test_the_main_job_in_bfloat16_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    precision.note_emulated.cache_clear()
    folder = tmp_path / "x"
    with caplog.at_level(logging.WARNING, "metapeft"):
        assert run(["train", *SMALL, "--autocast", "bfloat16", "--out", str(folder)]) == 0
    precision.note_emulated.cache_clear()
    said = [text for text in caplog.messages if "no bfloat16 instructions" in text]
    assert len(said) == 1
    assert "norm running, bfloat16 forwards, 95 % t" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "float32, forwards in bfloat16" in (folder / "report.html").read_text()
    for part in ("sr/run", "metapeft", "functions/metapeft"):
        assert dtypes(folder / part) == {torch.float32}
    with Run.open(folder / "sr/run", writable=False) as opened:
        assert opened.config["learner"]["precision"] == "bfloat16 forwards"
    sizes = ["--data", "glyphs", "--queries", "2", "--episodes", "4"]
    for options, shown in (([], True), (["--autocast", "off"], False)):
        assert run(["evaluate", str(folder / "metapeft"), *sizes, *options]) == 0
        assert ("bfloat16 forwards" in re.sub(r"\s+", " ", capsys.readouterr().out)) == shown
    assert run(["evaluate", str(folder / "metapeft"), *sizes, "--dtype", "float64"]) == 2
    assert "is for parameters in float32" in capsys.readouterr().err


def test_leaving_out_means_the_cpu_and_float32() -> None:
    stored = train.plain_config(TrainConfig())
    assert train.configured(stored, TrainConfig(device="cpu", dtype="float32")) == TrainConfig()
    with pytest.raises(ValueError, match="dtype='float64', but the run was started with None"):
        train.configured(stored, TrainConfig(dtype="float64"))
    with pytest.raises(ValueError, match="autocast='bfloat16' goes with"):
        TrainConfig(dtype="float64", autocast="bfloat16")

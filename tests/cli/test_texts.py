"""`metapeft train` and `metapeft data` on texts, with a random BERT in place of MiniLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from metapeft.backbones import sentence_encoder
from metapeft.cli import run
from metapeft.datasets import tokens
from metapeft.experiments.config import PairsConfig, TextsConfig, following_data, plain_config
from metapeft.experiments.results import read
from tests.datasets import tiny_texts


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tiny_texts.encoder(tmp_path / "encoder")
    for module in (sentence_encoder, tokens):
        monkeypatch.setattr(module, "encoder_folder", lambda: folder)
    return ["text", "--root", str(tiny_texts.texts(tmp_path / "texts"))]


@pytest.mark.slow
def test_the_main_job_on_texts(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--ways", "2", "--shots", "2", "--queries", "2", "--trained-layers", "1", "--rank", "2"]
    short = ["--pretrain-steps", "1", "--steps", "1", "--episodes", "2", "--validation-episodes", "2"]
    few = ["--inner-lrs", "0.1", "--inner-steps", "1", "--targets", "*layer.1.attention.self.[qv]*.weight"]
    out = tmp_path / "run"
    call = [
        "train",
        "--data",
        *data,
        "--backbone",
        "minilm",
        *sizes,
        *short,
        *few,
        "--out",
        str(out),
        "--quiet",
    ]
    assert run(call) == 0, capsys.readouterr().err
    found = read(out / "results.json")
    assert set(found.rows) == set(TextsConfig().methods)
    assert found.columns == ["plain"]
    assert list(found.differences) == ["metapeft"]
    assert "the pay my a; " in (out / "report.html").read_text()  # of the first test episode
    assert "Generating the update from the support set" in capsys.readouterr().out
    assert run([*call, "--resume"]) == 0
    assert run(["evaluate", str(out / "metapeft"), "--episodes", "2", "--queries", "2"]) == 0


def test_what_texts_hold(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", *data]) == 0
    said = capsys.readouterr().out
    assert "18" in said
    assert "tokens" in said


def test_settings_follow_the_data() -> None:
    own = following_data(PairsConfig(data="clinc150"), frozenset({"data"}))
    assert plain_config(own) == plain_config(TextsConfig(data="clinc150"))
    named = following_data(
        PairsConfig(data="text", shots=1, backbone="minilm"), frozenset({"data", "shots", "backbone"})
    )
    assert (named.shots, named.targets, named.function_steps) == (1, TextsConfig().targets, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--data", "banking77", "--backbone", "conv4"],
            "--backbone conv4 reads images, and --data banking77 has none",
        ),
        (
            ["--data", "glyphs", "--backbone", "minilm"],
            "--backbone minilm reads texts, and --data glyphs has none",
        ),
        (["--data", "banking77", "--neck", "8"], "neck has no effect on --backbone minilm"),
        (["--data", "banking77", "--trained-layers", "0"], "--trained-layers 0"),
    ],
)
def test_what_does_not_go_with_texts(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *given, "--out", str(tmp_path / "x")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())

"""A wrong folder says which is right; sentences speak of options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metapeft.cli import run
from metapeft.cli.wording import in_the_shell


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs/x`, with a learner, a stage that is neither, and a folder within it."""
    monkeypatch.chdir(tmp_path)
    for folder, config in (
        ("runs/x", {"train": {}}),
        ("runs/x/maml", {"learner": {"formats": {}}}),
        ("runs/x/maml/checkpoints", None),
        ("runs/x/sr", None),
        ("runs/x/sr/run", {"learner": {}}),
    ):
        Path(folder).mkdir(parents=True)
        if config is not None:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            (Path(folder) / "environment.json").write_text("{}")


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["report", "runs/x/maml"], "runs/x"),
        (["report", "runs/x/maml/checkpoints"], "runs/x"),
        (["report", "runs/y"], "runs/x"),
        (["report", "runs"], "runs/x"),
        (["train", "--out", "runs/x/maml", "--resume", "--quiet"], "runs/x"),
        (["evaluate", "runs/x/sr"], "runs/x/maml"),
        (["evaluate", "runs/x/maml/checkpoints"], "runs/x/maml"),
        (["ranks", "runs"], "runs/x/maml"),
    ],
)
def test_a_wrong_folder_says_which_is_right(
    arguments: list[str], right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert f"did you mean {right}?" in capsys.readouterr().err.replace("\n", " ")


def test_far_from_any_run_nothing_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["report", "nowhere"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("or give root=, or set", "or give --root, or set"),
        ("give root=", "give --root"),
        ("data='glyfs': known are", "--data glyfs: known are"),
        ("data='two words' is", "--data 'two words' is"),
        ("root=False, but it was started with True", "--no-root, but it was started with True"),
        ('data="x" needs root=True', "--data x needs --root"),
        ("data_options has 'x'", "--data-options has 'x'"),
        ("mp.load_dataset(root='x') reads it", "mp.load_dataset(root='x') reads it"),
        ("my_root=3 and roots=4", "my_root=3 and roots=4"),
        ("--data x: put the data there", "--data x: put the data there"),
    ],
)
def test_sentences_in_the_words_of_the_shell(said: str, shown: str) -> None:
    assert in_the_shell(said, ["root", "data", "data_options"]) == shown


def test_a_missing_place_is_told_as_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("METAPEFT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(["data", "omniglot"]) == 2
    assert "give --root, or set METAPEFT_DATA" in capsys.readouterr().err.replace("\n", " ")


def test_ranks_of_weights_that_have_not_moved_are_said_to_be_noise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = Path(__file__).parents[1] / "fixtures" / "runs" / "train" / "metapeft"
    assert run(["ranks", str(stored)]) == 0
    assert "The weights have not moved from 1/k" in capsys.readouterr().err


def test_the_list_stands_in_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = lines[0].index("what it is")
    assert all(line[begin - 1] == " " and line[begin] != " " for line in lines)
    assert any(line.startswith("retrained-threshold ") for line in lines)

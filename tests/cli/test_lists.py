from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metapeft.cli import lists
from metapeft.cli.config_file import from_file
from metapeft.cli.shell import app, run


def parsed(*call: str, file: Path | None = None) -> dict[str, Any]:
    app.config = (*((from_file(file, app, call),) if file else ()), lists.split)
    return dict(app.parse_args(call, exit_on_error=False, print_error=False)[1].arguments)


@pytest.mark.parametrize(
    "given",
    [
        ("--methods", "maml,anil"),
        ("--methods", "maml", "anil"),
        ("--methods", "maml", "--methods", "anil"),
        ("--methods=maml, anil",),
    ],
)
def test_a_list_of_names(given: tuple[str, ...]) -> None:
    config = parsed("train", *given, "--seed", "3")["config"]
    assert config.methods == ("maml", "anil")
    assert config.seed == 3


def test_lists_of_numbers() -> None:
    config = parsed("train", "--inner-lrs", "0.1,0.3", "--inner-steps", "1", "3,5")["config"]
    assert config.inner_lrs == (0.1, 0.3)
    assert config.inner_steps == (1, 3, 5)


def test_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text('methods = "maml,anil"\ninner_steps = [1, 3]\n')
    config = parsed("train", file=tmp_path / "options.toml")["config"]
    assert config.methods == ("maml", "anil")
    assert config.inner_steps == (1, 3)


def test_commas_of_paths_and_of_values_stay() -> None:
    assert parsed("predict", "x", "a,b.jpg", "--support", "c,d") == {
        "run": Path("x"), "images": [Path("a,b.jpg")], "support": Path("c,d"),
    }  # fmt: skip
    assert parsed("train", "--data-options", "kinds=a,b", "noise=0")["config"].data_options == (
        "kinds=a,b",
        "noise=0",
    )


def test_an_empty_entry_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["train", "--out", str(tmp_path / "x"), "--methods", "maml,,anil"]) == 2
    assert "maml,,anil" in capsys.readouterr().err

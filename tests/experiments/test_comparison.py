"""Runs side by side: what differs in settings, and differences that are paired only over the same episodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from metapeft.cli import run
from metapeft.experiments.comparison import accuracy_table, difference, sentence, settings_table
from metapeft.experiments.results import Cell, Results, Row

STORED = Path(__file__).parents[1] / "fixtures" / "runs" / "train"
PROTOCOL = {"data": "glyphs", "seed": 2, "inner_steps": 3, "norm": "running"}


def cell(values: list[float], **protocol: Any) -> Cell:
    return Cell(sum(values) / len(values), 0.03, protocol={**PROTOCOL, **protocol}, values=values)


def test_the_same_episodes_are_paired() -> None:
    first, second = cell([0.1, 0.5, 0.9], norm="support"), cell([0.2, 0.6, 1.0], inner_steps=1)
    (mean, half), paired = difference(first, second)
    assert paired
    assert mean == pytest.approx(0.1)
    assert half == pytest.approx(0.0, abs=1e-12)  # each by as much


@pytest.mark.parametrize("other", [{"seed": 3}, {"data": "omniglot"}, None])
def test_other_episodes_are_not(other: dict[str, Any] | None) -> None:
    second = Cell(0.6, 0.04, values=[0.6] * 3) if other is None else cell([0.6] * 3, **other)
    (mean, half), paired = difference(cell([0.5] * 3), second)
    assert not paired
    assert (mean, half) == (pytest.approx(0.1), pytest.approx((0.03**2 + second.ci95**2) ** 0.5))


def runs(values: list[float]) -> dict[str, Results]:
    """A run and another one, of which `maml` has these values."""
    base = Results({"steps": 4}, {"maml": Row(columns={"plain": cell([0.1, 0.5, 0.9])})})
    return {
        "a": base,
        "b": Results({"steps": 8, "methods": ["maml"]}, {"maml": Row(columns={"plain": cell(values)})}),
    }


def test_tables_and_the_sentence() -> None:
    better = runs([0.3, 0.71, 1.1])
    assert sentence(better).startswith("b differs from a in 1 of 1 numbers, most for maml at plain: +20.3 ± ")
    assert settings_table(better).rows[:2] == [["steps", "4", "8"], ["methods", "-", "maml"]]
    table = accuracy_table(better)
    assert table.rows[0][:4] == ["maml", "plain", "50.00 ± 3.00", "70.33 ± 3.00"]
    assert table.best == {(0, 3)}
    assert sentence(runs([0.5, 0.1, 0.9])) == "b is nowhere told apart from a, in 1 numbers."
    assert "no method and column in common" in sentence({**better, "b": Results(rows={"anil": Row()})})


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(STORED, name)
    stored = json.loads(Path("b/results.json").read_text())
    stored["config"]["steps"] = 7
    Path("b/results.json").write_text(json.dumps(stored))
    assert run(["report", "a", "b", "--out", "c"]) == 0
    said = capsys.readouterr().out
    assert "b is nowhere told apart from a" in said
    page = Path("c/report.html").read_text(encoding="utf-8")
    assert "Runs compared: a and b" in page
    assert "<td>steps</td><td>2</td><td>7</td>" in page
    for wrong, sentence_ in (
        (["a", "a"], "one is named twice"),
        (["a", "--out", "c"], "--out is for a comparison"),
    ):
        assert run(["report", *wrong]) == 2
        assert sentence_ in capsys.readouterr().err

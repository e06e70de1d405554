"""`results.json` is read as it was written, by an older version too, and what is no results is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metapeft.base.errors import RunError
from metapeft.experiments.compared_methods import METHODS, check_method
from metapeft.experiments.config import TrainConfig
from metapeft.experiments.results import Cell, Regression, Results, Row, read, write

CELL = Cell(0.9, 0.01, 2, {"ways": 5}, [1.0, 0.8])
ROW = Row(
    "a method", 7, {"scale": 0.1, "plain": {"steps": 3, "validation": {"3": 0.5}}}, {}, [], {"plain": CELL}
)
WHOLE = Results(
    {"ways": 5}, {"own": ROW}, {"own": {}}, [{"step": 1, "loss": 0.5}],
    Regression({"maml": {"0": [1.0, 0.1]}}, "a protocol", [{"x": [0.0]}]), 3.5, {"cpu": "one"},
)  # fmt: skip


@pytest.mark.parametrize("regression", [True, False])
def test_what_is_written_is_read(regression: bool, tmp_path: Path) -> None:
    own = WHOLE if regression else replace(WHOLE, regression=None)
    write(tmp_path / "results.json", own)
    assert read(tmp_path / "results.json") == own
    stored = json.loads((tmp_path / "results.json").read_text())
    assert ("regression" in stored) is regression


def test_files_of_other_versions_are_read(tmp_path: Path) -> None:
    """Divergences were not counted once, sinusoids the only regression; a later version may keep more."""
    stored: dict[str, Any] = WHOLE.as_json()
    stored["sinusoid"] = {name: stored["regression"][name] for name in ("rows", "protocol", "fits")}
    del stored["regression"]
    del stored["rows"]["own"]["columns"]["plain"]["diverged"]
    stored["later"] = stored["rows"]["own"]["later"] = stored["rows"]["own"]["columns"]["plain"]["later"] = 1
    path = tmp_path / "results.json"
    path.write_text(json.dumps(stored))
    assert read(path).regression == WHOLE.regression
    row = read(path).rows["own"]
    assert row.columns["plain"] == Cell(0.9, 0.01, 0, {"ways": 5}, [1.0, 0.8])
    assert (row.steps("plain"), row.steps("shifted")) == (3, None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"is damaged .*: metapeft train --out .* --resume"),
        ("[]", "is damaged"),
        ('{"rows": 3}', "is damaged"),
        ('{"rows": {"x": 3}}', "holds something else"),
        ('{"rows": {"x": {"columns": {"plain": {}}}}}', "holds something else"),
    ],
)
def test_other_files_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunError, match=sentence):
        read(tmp_path / "results.json")


def test_methods_that_build_on_another_name_one_that_is_trained() -> None:
    building = {name: method.needs for name, method in METHODS.items() if method.needs is not None}
    assert building.keys() == {
        "other-kind", "other-task", "retrained-threshold", "retrained-total", "retrained-uniform", "retrained-shuffled",
        "retrained-random",
    }  # fmt: skip
    for name, needed in building.items():
        assert METHODS[needed].trains
        assert METHODS[needed].needs is None
        with pytest.raises(ValueError, match=f"methods has '{name}', which builds on '{needed}'"):
            check_method(name, (name,))
        check_method(name, (needed, name))


NINE = TrainConfig(rank=9)


def test_updates_of_all_methods_follow_the_rank() -> None:
    """Those with full updates or none have no rank; all others do, each in its recipe's words."""
    without = {name for name, method in METHODS.items() if not method.sized(NINE)}
    assert without == {"centroids", "maml", "fomaml", "anil", "boil", "protonet"}
    sizes = {name: method.sized(NINE) for name, method in METHODS.items() if name not in without}
    for name in ("lora-ml", "sr+lora", "metalora-cp", "inner-off"):
        assert sizes.pop(name) == {"rank": 9}
    assert sizes.pop("metalora-tr") == {"rank": 3}
    assert {options["format"].rank for options in sizes.values()} == {9}

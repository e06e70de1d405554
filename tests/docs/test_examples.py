"""What the worked examples and pages in docs/ say is what comes out."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hypergradient_pages import FIGURE, PAGE, RESULT, by_engine, filled
from metapeft.hypergradients.table import registry

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(name: str, **options: Any) -> dict[str, float]:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, float] = module.main(**options)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned_regularisation(seed: int) -> None:
    found = run("learned_regularisation", seed=seed)
    assert found["test error, 40 penalties"] < 0.6 * found["test error, one penalty"]
    assert found["mean log penalty, useless"] > found["mean log penalty, useful"] + 1.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_data_reweighting(seed: int) -> None:
    found = run("data_reweighting", seed=seed)
    assert found["mean weight, flipped"] < 0.5 * found["mean weight, clean"]
    assert found["flipped labels found"] > 0.7
    assert found["test accuracy, learned weights"] > found["test accuracy, equal weights"] + 0.03
    assert abs(found["test accuracy, learned weights"] - found["test accuracy, clean rows only"]) < 0.04


@pytest.mark.slow
def test_learned_rates() -> None:
    found = run("learned_rates")
    assert found["loss, learned rates"] < 0.1 * found["loss, single rate"]
    assert found["largest learned rate"] > 1.5 * found["stable below"]


@pytest.mark.slow
def test_lora_initialisation() -> None:
    found = run("lora_initialisation")
    assert found["loss, usual start"] > 0.95 * found["variance of the answers"]
    assert found["loss, learned start"] < 0.85 * found["variance of the answers"]


@pytest.mark.slow
def test_sinusoid_regression() -> None:
    found = run("sinusoid_regression")
    assert found["learned start, 1 step"] < 0.4 * found["learned start, 0 steps"]
    assert found["learned start, 5 steps"] < found["learned start, 1 step"]
    assert found["random start, 5 steps"] > 0.9 * found["learned start, 0 steps"]


def test_every_example_is_listed_and_tested() -> None:
    listed = set(re.findall(r"\[(\w+)\.py\]", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    there = {path.stem for path in EXAMPLES.glob("*.py")}
    tested = set(re.findall(r'run\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    assert listed == there == tested


def test_the_page_has_a_row_for_every_engine_and_the_measured_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in registry.names:
        assert f"| `{name}` |" in page, name
    assert filled(page, json.loads(RESULT.read_text(encoding="utf-8"))) == page
    assert FIGURE.name in page
    assert FIGURE.exists()


def test_memory_is_as_the_page_says() -> None:
    """Recompute and the implicit engines hold at K = 100 what they hold at K = 1; unroll grows linearly."""
    rows = by_engine(json.loads(RESULT.read_text(encoding="utf-8")))
    for name in ("recompute", "recompute sqrt", "cg 10", "neumann 10"):
        assert rows[name][100]["bytes"] < 1.5 * rows[name][1]["bytes"], name
    unroll = {steps: row["bytes"] for steps, row in rows["unroll"].items()}
    a_step = (unroll[100] - unroll[20]) / 80
    assert a_step == pytest.approx((unroll[20] - unroll[5]) / 15, rel=0.15)
    assert unroll[100] > 10 * unroll[1]


def test_the_page_of_starts_reads_features_in_three_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (EXAMPLES.parent / "few-shot.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    runpy.run_path(str(tmp_path / "block.py"))
    heads = re.findall(r"head (prototypes.*?), 95", capsys.readouterr().out)
    assert heads == ["prototypes", "prototypes l2", "prototypes center+l2"]


def test_the_page_of_ranks_does_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (EXAMPLES.parent / "ranks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        (tmp_path / f"block{number}.py").write_text(block, encoding="utf-8")
        found = runpy.run_path(str(tmp_path / f"block{number}.py"))
    assert "linear1.weight" in capsys.readouterr().out
    assert found["logits"].shape == (4, 10, 3)
    assert found["alone"].shape == (10, 3)

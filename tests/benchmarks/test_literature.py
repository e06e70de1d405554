"""Rows beside the literature's: a run, going on, what is kept of it, and the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from benchmarks import literature
from benchmarks.literature_rows import PUBLISHED, ROWS, SOURCES, Problem, Training, problems
from benchmarks.literature_tables import of_literature
from metapeft.training.runs.checkpoint import load, save


class Small(Problem):
    """Glyphs on a small net."""

    def backbone(self, seed: int) -> torch.nn.Module:
        module: torch.nn.Module = mp.backbones.conv4(ways=5, width=8, seed=seed)
        return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of two steps on glyphs, from a start of random weights."""
    problem = Small("glyphs", 5, 2, "random", augment={"crop": 2})
    short = {"glyphs": Training(4, 0.01, ways=5, queries=3, validate_every=2)}
    rows = {
        name: dataclasses.replace(
            row, training=row.training and short, grid={k: v[:1] for k, v in row.grid.items()}
        )
        for name, row in ROWS.items()
    }
    monkeypatch.setattr(literature, "problems", lambda: {problem.name: problem})
    monkeypatch.setattr(literature, "ROWS", rows)
    monkeypatch.setattr(literature, "RESULTS", tmp_path / "literature")
    monkeypatch.setattr(literature, "STARTS", tmp_path)
    save(tmp_path / "random-0.safetensors", dict(problem.backbone(0).state_dict()), {})
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("row", ["simpleshot", "rfs-simple", "meta-baseline", "metapeft", "maml"])
def test_a_row_is_run_and_rerun(row: str, folder: Path) -> None:
    """What is kept of a row gives the same accuracies, episode by episode, and `mp.evaluate` gives them too."""
    options: dict[str, Any] = {"episodes": 6, "threads": 1, "compiled": False}
    literature.run("glyphs-5w2s", row, folder / "runs", **options)
    file = folder / "literature" / f"glyphs-5w2s-{row}-0.json"
    first = json.loads(file.read_text())
    assert first["protocol"]["episodes"] == len(first["values"]) == 6
    assert bool(first["log"]) == (ROWS[row].training is not None)
    literature.rerun("glyphs-5w2s", row, **options)
    assert json.loads(file.read_text())["values"] == first["values"]
    problem, chosen = literature.named("glyphs-5w2s", row)
    learner = literature.made(problem, chosen, literature.start_of(problem, chosen, 0), first["settings"])
    if row == "rfs-simple":
        sampler = mp.EpisodeSampler(mp.load_dataset("glyphs", split="test"), 5, 2, 15, seed=2)
        assert mp.evaluate(learner, sampler, 6).values.tolist() == pytest.approx(first["values"], abs=1e-4)


@pytest.mark.slow
def test_a_stopped_row_goes_on(folder: Path) -> None:
    """A finished run folder is not trained again."""
    options: dict[str, Any] = {"episodes": 2, "threads": 1, "compiled": False}
    literature.run("glyphs-5w2s", "meta-baseline", folder / "runs", **options)
    with pytest.raises(
        SystemExit, match=r"run `python -m benchmarks\.literature run glyphs-5w2s meta-baseline`"
    ):
        literature.run("glyphs-5w2s", "meta-baseline-cl2n", seed=1, **options)
    literature.run("glyphs-5w2s", "meta-baseline-cl2n", **options)
    problem, chosen = literature.named("glyphs-5w2s", "meta-baseline-cl2n")
    kept = load(folder / "literature" / "glyphs-5w2s-meta-baseline-0.safetensors")[0]
    body = literature.start_of(problem, chosen, 0)
    found = {name: value for name, value in body.state_dict().items() if not name.startswith("classifier.")}
    own = {name.partition(".")[2]: value for name, value in kept.items() if not name.startswith("head.")}
    assert all(torch.equal(value, own[name]) for name, value in found.items())
    metrics = folder / "runs" / "glyphs-5w2s-meta-baseline-0" / "metrics.jsonl"
    before = metrics.read_bytes()
    literature.run("glyphs-5w2s", "meta-baseline", folder / "runs", **options)
    assert metrics.read_bytes() == before


def test_unknown_names_and_missing_starts_are_said(folder: Path) -> None:
    with pytest.raises(SystemExit, match="unknown row 'proto': known are start"):
        literature.run("glyphs-5w2s", "proto")
    with pytest.raises(SystemExit, match="unknown problem 'x': known are glyphs-5w2s"):
        literature.run("x", "start")
    (folder / "random-0.safetensors").unlink()
    with pytest.raises(
        SystemExit, match=r"random-0\.safetensors is missing: run `python -m benchmarks.starts train random`"
    ):
        literature.run("glyphs-5w2s", "start", threads=1, compiled=False)


def test_published_numbers_are_of_known_rows_and_problems() -> None:
    assert set(PUBLISHED) == set(SOURCES) <= set(ROWS)
    assert {name for of_row in PUBLISHED.values() for name in of_row} <= set(problems())


def test_the_table_pairs_with_the_base_and_refuses_other_protocols(tmp_path: Path) -> None:
    def write(row: str, values: list[float], **protocol: Any) -> None:
        said = {
            "data": "miniimagenet", "split": "test", "split_hash": "0", "ways": 5, "shots": 1, "queries": 15,
            "episodes": len(values), "seed": 2, "shift": "none", "augment": "none", "rotations": False,
            "imbalanced": False, "inner_steps": None, "norm": "running", "head": row, "interval": "95 % t", **protocol,
        }  # fmt: skip
        found = {
            "problem": "miniimagenet-5w1s", "row": row, "seed": 0, "accuracy": sum(values) / len(values), "ci95": 0.1,
            "protocol": said, "images": 3, "base": ROWS[row].base, "values": values,
            "environment": {"commit": "abc", "cpu": "one"},
        }  # fmt: skip
        (tmp_path / "literature").mkdir(exist_ok=True)
        (tmp_path / "literature" / f"{row}.json").write_text(json.dumps(found))

    assert of_literature(tmp_path) == ""
    write("start-l2", [0.4, 0.5])
    write("lora-ml", [0.5, 0.6], inner_steps=5)
    write("protonet", [0.1, 0.1])
    lines = of_literature(tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines[2:5]] == ["| lora-ml", "| start-l2", "| protonet"]
    assert "| +10.00 ± 0.00 | - |" in lines[2]
    assert "49.42, Snell et al. 2017" in lines[4]
    write("maml", [0.1, 0.1], shots=5)
    with pytest.raises(ValueError, match="measured by different protocols"):
        of_literature(tmp_path)

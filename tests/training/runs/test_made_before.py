"""Runs of an earlier version are loaded, go on and are reported as that version did; `made_before.py` made them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import metapeft as mp
from tests.training.runs.made_before import accuracy, cells, numbers, printed, sampler, trainer

RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
NOTED = json.loads((RUNS / "noted.json").read_text(encoding="utf-8"))
# Another processor, or another version of torch, adds in another order. In float64 that is 1e-16 of a number, which
# eight outer steps of three inner steps each make no more than 1e-12 of; anything else is a change of what is computed.
CLOSE = 1e-9


def same(found: Any, noted: Any) -> bool:
    """Whether two trees of numbers are the same up to rounding, with the same names."""
    if isinstance(noted, Mapping):
        return set(found) == set(noted) and all(same(found[name], noted[name]) for name in noted)
    if isinstance(noted, list):
        return len(found) == len(noted) and all(map(same, found, noted))
    return found == pytest.approx(noted, rel=CLOSE, abs=CLOSE)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "prefix"), [("best", ""), ("latest", "learner/")])
def test_tensors_are_those_stored(name, prefix):
    """As safetensors reads the file, without our reader."""
    tensors = load_file(RUNS / f"learner/checkpoints/{name}.safetensors")
    stored = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    found = mp.load(RUNS / "learner", name).state()
    assert set(found) == set(stored)
    assert {key for key, value in stored.items() if not torch.equal(found[key], value)} == set()


@pytest.mark.parametrize("name", ["best", "latest"])
def test_numbers_are_those_noted(name):
    found = numbers(mp.load(RUNS / "learner", name), sampler(RUNS, "val"))
    assert same(found, NOTED["learner"][name])


def test_a_run_goes_on_to_the_same_end(one_thread, tmp_path):
    run = shutil.copytree(RUNS / "learner", tmp_path / "learner")
    own = trainer()
    rows = own.resume(run, sampler(RUNS), sampler(RUNS, "val"))
    assert same(rows, NOTED["rows"])
    assert same(
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()], NOTED["rows"]
    )
    end, found = load_file(RUNS / "end.safetensors"), load_file(run / "checkpoints/latest.safetensors")
    assert {name for name in found if name.startswith("learner/")} == set(end)
    for name, value in end.items():
        torch.testing.assert_close(found[name], value, rtol=CLOSE, atol=CLOSE, msg=name)
    assert same(numbers(own.learner, sampler(RUNS, "val")), NOTED["learner"]["end"])


@pytest.fixture
def main_job(tmp_path):
    """A copy of the main job's folder, for what writes into it."""
    return shutil.copytree(RUNS / "train", tmp_path / "train")


def test_the_report_of_a_main_job_has_the_same_cells(main_job):
    assert cells(main_job) == NOTED["cells"]


def test_ranks_of_a_main_job(main_job):
    assert printed("ranks", str(main_job / "metapeft")).split() == NOTED["ranks"].split()


@pytest.mark.parametrize("name", ["metapeft", "sr+lora"])
def test_a_row_of_a_main_job_is_evaluated(name, main_job):
    """In float32 on glyphs that are drawn here: another processor may see one of the 200 queries otherwise."""
    (value, rest), (noted, protocol) = (
        text.split(" ", 1) for text in (accuracy(main_job / name), NOTED["evaluate"][name])
    )
    assert rest.partition("%")[2] == protocol.partition("%")[2]
    assert float(value) == pytest.approx(float(noted), abs=100 / 200 + 1e-9)

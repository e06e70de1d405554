"""The trials of reliability are trials: faults that are there are found, and the tables say them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.reliability.work import WORKS, content, leftovers
from benchmarks.reliability_tables import of_reliability

ROW = {
    "kills": 2,
    "whole_runs": 1,
    "most_lost_steps": 1,
    "unreadable": [],
    "differing": ["a"],
    "leftovers": [],
}
FULL = {
    "fault": "full disk, 50% of the room", "work": "export", "exit_code": 1, "error": "RunError", "message": "no|room",
    "readable": True, "went_on_to_the_same_end": False,
}  # fmt: skip
SOAK = {
    "seconds": 1200, "steps": 2000, "episodes": 5000, "rounds": [{}] * 8, "mib_second_quarter": 400.0,
    "mib_last_quarter": 402.0, "growth": 0.005, "open_files": [9],
}  # fmt: skip
WORKING = """
import json, sys
from pathlib import Path
import torch
from benchmarks.reliability import kills
torch.set_num_threads(1)
print(json.dumps(kills.killed("export", Path(sys.argv[1]), {}, lambda row: None, 2)))
"""


def test_a_hundred_kills() -> None:
    assert sum(work.kills for work in WORKS.values()) == 100


def test_content_is_of_tensors_and_entries_not_of_their_order(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    tensors = {"w": torch.arange(4.0)}
    said = {str(number): "x" for number in range(20)}
    save_file(tensors, tmp_path / "a" / "x.safetensors", said)
    save_file(tensors, tmp_path / "b" / "x.safetensors", dict(reversed(said.items())))
    save_file({"w": tensors["w"] + 1}, tmp_path / "c" / "x.safetensors", said)
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b != c
    (tmp_path / "a" / ".x.json.abcdef-1-0123456789abcdef.partial").touch()
    assert len(leftovers(tmp_path)) == 1


def test_the_tables_say_what_was_found(tmp_path: Path) -> None:
    found = {
        "command": "python -m benchmarks.reliability", "environment": {"commit": "0123456789ab", "cpu": "a CPU"},
        "kills": {"train": ROW, "import": ROW}, "faults": {"export": [FULL]}, "soak": SOAK,
    }  # fmt: skip
    (tmp_path / "reliability.json").write_text(json.dumps(found))
    text = of_reliability(tmp_path)
    assert "### 4 kills" in text
    assert "| a data set into a store | 2 | 1 | 1 | 0 | 1 | 0 |" in text
    assert "| adapters for PEFT | full disk, 50% of the room | RunError: no/room | yes | no |" in text
    assert "20 minutes in one process: 2,000 outer steps and 5,000 episodes" in text
    assert "(+0.5 %); open files 9." in text


@pytest.mark.slow
def test_work_that_is_killed_comes_to_the_same_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKING, str(tmp_path)]
    row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert row["kills"] == 2
    assert row["whole_runs"] >= 1
    assert row["unreadable"] == row["differing"] == row["leftovers"] == []

"""The main job through the shell: from end to end, killed and resumed, with every method of its table."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from metapeft.experiments.compared_methods import METHODS
from tests.training.runs.killing import contents, last_step, wait_for


def options(pretrain, steps, functions):
    sizes = ("--pretrain-steps", str(pretrain), "--steps", str(steps), "--function-steps", str(functions))
    return [
        *("--width", "4", "--tasks-per-step", "1", "--episodes", "2", "--validation-episodes", "2"),
        *("--queries", "2", "--inner-lrs", "0.01", "--inner-steps", "1", *sizes, "--quiet"),
    ]


TINY = options(2, 2, 2)


def shell(*arguments, **options):
    command = [sys.executable, "-m", "metapeft", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.slow
def test_a_job_killed_ten_times_ends_the_same(tmp_path):
    """Three kills land in a stage of their own, after a random step that was seen; seven come after random times."""
    given = [*options(30, 150, 4), "--methods", "metapeft", "--methods", "sr+lora"]
    folder, draw = tmp_path / "killed", random.Random(0)
    command = [sys.executable, "-m", "metapeft", "train", "--out", str(folder)]
    # before the first checkpoint, after the one at step 25, and in what is retrained from the first stage's end
    for stage, steps, end, more_kills in (
        ("sr/run", (1, 10), 30, 2),
        ("metapeft", (26, 40), 150, 2),
        ("sr-continued/run", (1, 30), 150, 3),  # so long that whoever watches may be late
    ):
        for kill in range(1 + more_kills):
            more = ["--resume", "--quiet"] if (folder / "config.json").exists() else given
            with (tmp_path / "said.txt").open("w") as said:
                process = subprocess.Popen([*command, *more], stdout=said, stderr=said)
            try:
                if kill == 0:
                    wait_for(folder / stage, draw.randint(*steps), lambda: process.poll() is None)  # noqa: B023
                    time.sleep(draw.uniform(0, 0.05))
                else:
                    time.sleep(draw.uniform(0.5, 5.0))  # while it starts, reads what is there, or trains on
            finally:
                process.kill()
            assert process.wait() == -signal.SIGKILL, (tmp_path / "said.txt").read_text()
            if kill == 0:
                assert 0 < last_step(folder / stage) < end
    resumed = shell(*command[3:], "--resume")
    assert resumed.returncode == 0, resumed.stderr
    whole = shell("train", "--out", str(tmp_path / "whole"), *given)
    assert whole.returncode == 0, whole.stderr
    found = contents(folder)
    latest = "checkpoints/latest.safetensors"
    assert {f"{stage}/{latest}" for stage in ("sr/run", "metapeft", "functions/metapeft")} <= set(found)
    assert found == contents(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")]
    for timed in ("seconds", "environment", "costs", "sha256"):  # the last is of all, these with it
        assert results[0].pop(timed)
        assert results[1].pop(timed)
    assert results[0] == results[1]


@pytest.mark.slow
def test_the_main_job_end_to_end(tmp_path):
    whole = shell("train", "--out", str(tmp_path / "whole"), *TINY)
    assert whole.returncode == 0, whole.stderr
    assert "sr+lora" in whole.stdout
    assert (tmp_path / "whole" / "report.html").stat().st_size > 10_000
    again = shell("train", "--out", str(tmp_path / "whole"), *TINY)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
    report = shell("report", str(tmp_path / "whole"))
    assert report.returncode == 0, report.stderr
    evaluated = shell("evaluate", str(tmp_path / "whole" / "lora-ml"), "--episodes", "2", "--queries", "2")
    assert evaluated.returncode == 0, evaluated.stderr
    ranks = shell("ranks", str(tmp_path / "whole" / "metapeft"))
    assert ranks.returncode == 0, ranks.stderr
    baseline = shell("evaluate", str(tmp_path / "whole" / "sr+lora"), "--episodes", "2", "--queries", "2")
    assert baseline.returncode == 0, baseline.stderr
    regression = shell("evaluate", str(tmp_path / "whole" / "functions" / "metapeft"), "--episodes", "2")
    assert regression.returncode == 0, regression.stderr
    above = shell("evaluate", str(tmp_path / "whole"))
    assert above.returncode == 2
    assert "lora-ml" in above.stderr
    exported = shell("export", str(tmp_path / "whole" / "lora-ml"), str(tmp_path / "adapter"))
    assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
def test_every_method_of_the_table_runs(tmp_path):
    """In the order of the table, so that what builds on another comes before it too."""
    names = [word for name in METHODS for word in ("--methods", name)]
    done = shell("train", "--out", str(tmp_path / "all"), *options(2, 2, 0), *names)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "all" / "results.json").read_text())["rows"]
    assert list(rows) == list(METHODS)
    for row in rows.values():
        assert {len(found["values"]) for found in row["columns"].values()} == {2}
    assert rows["other-kind"]["columns"]["0 steps"]["protocol"]["shown"] == "another kind"
    assert list(rows["lora-ml"]["columns"]) == ["0 steps", "1 step"]
    assert list(rows["protonet"]["columns"]) == ["0 steps"]
    heads = {
        name: rows[name]["columns"]["0 steps"]["protocol"]["head"] for name in ("anil", "boil", "protonet")
    }
    assert heads == {"anil": "prototype-init", "boil": "prototypes", "protonet": "prototypes"}

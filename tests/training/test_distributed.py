"""Two processes train as one does; one that dies ends the run, and torchrun goes on from the last checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import metapeft as mp
from metapeft.base.machine.processes import Processes
from metapeft.training.accumulation import accumulated
from metapeft.training.checks import refuse_processes
from metapeft.training.outer_gradient import averaged
from metapeft.training.runs.run import Run
from metapeft.training.trainer import as_task
from tests.training.helpers import learner, sampler
from tests.training.ranks import TASKS, train
from tests.training.test_trainer import problem

KINDS = ("metapeft", "protonet")  # by inner loop; on batch statistics


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def torchrun(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [*command, *options, "-m", *arguments], capture_output=True, text=True, timeout=300, env=environment()
    )


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12))
def test_shares_are_disjoint_and_cover_the_step(start: int, count: int, processes: int) -> None:
    shares = [Processes(rank, processes).share(start, count) for rank in range(processes)]
    taken = [
        number for share in shares if share.weight for number in range(share.start, share.start + share.count)
    ]
    assert taken == list(range(start, start + count))
    assert sum(share.weight for share in shares) == pytest.approx(1.0, rel=1e-12)
    assert all(share.count >= 1 and share.weight in (0.0, share.count / count) for share in shares)
    assert max(share.count for share in shares) == shares[0].count


def test_alone_nothing_is_exchanged() -> None:
    alone, x = Processes(), torch.ones(2)
    assert alone.mean({"x": x}, 1.0)["x"] is x
    assert (alone.most(3), alone.least(3), alone.decided(lambda: [1]), alone.main) == (3, 3, [1], True)


@pytest.mark.parametrize(
    ("task", "warm", "sentence"),
    [(problem, False, "a bilevel problem is not cut"), (lambda: learner("warm"), True, "but there are 2")],
)
def test_what_processes_can_not_share_is_refused(task: Any, warm: bool, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        refuse_processes(as_task(task()), warm, Processes(0, 2))


class Noting(Processes):
    """A process that notes what it would add to the sum."""

    def __init__(self, rank: int, count: int, sums: dict[str, Any]) -> None:
        super().__init__(rank, count)
        object.__setattr__(self, "sums", sums)

    def mean(self, values: Any, weight: float) -> Any:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * value  # type: ignore[attr-defined]
        return dict(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [2, 3, 7])
def test_the_shares_add_up_to_the_mean_over_all_tasks(kind: str, processes: int) -> None:
    """Gradients, numbers and batch statistics of five tasks; with seven processes two have none of their own."""
    own, sums = learner(kind, dtype=torch.float64), {}
    whole = accumulated(own, sampler().batch(10, TASKS), None)
    for rank in range(processes):
        note = Noting(rank, processes, sums)
        share = note.share(10, TASKS)
        averaged(
            accumulated(own, sampler().batch(share.start, share.count), None), share.weight, note, own.trained
        )
    wanted = {f"grads.{name}": grad for name, grad in whole.grads.items()}
    wanted |= {f"values.{name}": value for name, value in whole.values.items()}
    for name, (mean, variance) in whole.statistics.items():
        wanted |= {f"mean.{name}": mean, f"variance.{name}": variance}
    reached = {f"reached.{name}" for name in whole.grads}
    assert {*sums} == {*wanted, *reached}
    assert all(float(sums[name]) > 0 for name in reached)
    assert (kind == "protonet") == any(name.startswith("mean.") for name in sums)
    for name, value in wanted.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-8, atol=1e-14)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    found = torchrun("tests.training.ranks", str(folder), ",".join(KINDS), "-1")
    assert found.returncode == 0, found.stderr
    return folder


@pytest.mark.slow
def test_no_thread_of_the_group_is_left(two: Path) -> None:
    """One that outlives the interpreter now and then aborts a process that has finished."""
    for rank in range(2):
        threads = (two / f"threads.{rank}").read_text()
        assert "python" in threads
        assert "gloo" not in threads


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_with_the_same_episodes(kind: str, two: Path, tmp_path: Path) -> None:
    """Weights, buffers and rows, after six steps with clipping and validation, on shares of three and two tasks."""
    one = train(tmp_path / "one", kind)
    with Run.open(two / kind, writable=False) as run:
        latest, rows = run.load("latest")[0], run.metrics()
    with Run.open(tmp_path / "one", writable=False) as run:
        expected, expected_rows = run.load("latest")[0], run.metrics()
    assert (latest["processes"], expected["processes"]) == (2, 1)
    for name, value in expected["learner"].items():
        error = float((latest["learner"][name].double() - value.double()).norm())
        assert error <= 1e-6 * float(value.double().norm()) + 1e-15, (
            name
        )  # prototypes leave norm4.bias at rounding
    start = learner(kind, dtype=torch.float64).state()
    assert any(not torch.equal(start[name], value) for name, value in expected["learner"].items())
    assert [sorted(row) for row in rows] == [sorted(row) for row in expected_rows]
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6)
    digests = [(two / f"{kind}.{rank}").read_text() for rank in range(2)]
    assert digests[0] == digests[1]  # the same bits on all of them
    assert one.processes.count == 1


@pytest.mark.slow
def test_only_rank_0_writes(two: Path) -> None:
    """One row a logged step, one configuration, and nothing half-written."""
    for kind in KINDS:
        steps = [row["step"] for row in Run.open(two / kind, writable=False).metrics()]
        assert steps == [2, 3, 4, 6]
    assert not list(two.rglob("*.partial"))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    """Started without torchrun, which would end the other one before it can speak."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    death = 4 * TASKS + 4  # drawn by rank 1, ahead of step 5
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.training.ranks", str(tmp_path), "metapeft", str(death)]
    own = [environment(RANK=rank, LOCAL_RANK=rank, **common) for rank in ("0", "1")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=each) for each in own]
    said = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [1, -9]
    assert "ConnectionError: rank 0 of 2: another rank is gone" in said[0]
    with Run.open(tmp_path / "metapeft", writable=False) as run:
        assert run.load("latest")[0]["step"] in (2, 4)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_torchrun_starts_it_again_from_the_last_checkpoint(two: Path, tmp_path: Path) -> None:
    found = torchrun(
        "tests.training.ranks", str(tmp_path), "metapeft", str(4 * TASKS + 4), options=("--max-restarts", "1")
    )
    assert found.returncode == 0, found.stderr
    assert "Signal 9" in found.stderr or "exitcode: -9" in found.stderr
    assert (tmp_path / "metapeft.0").read_text() == (two / "metapeft.0").read_text()  # bit for bit
    rows = [(folder / "metapeft" / "metrics.jsonl").read_text() for folder in (tmp_path, two)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_the_main_job_under_torchrun(tmp_path: Path) -> None:
    tiny = (
        *(
            "--width",
            "4",
            "--pretrain-steps",
            "2",
            "--steps",
            "3",
            "--tasks-per-step",
            "3",
            "--episodes",
            "2",
        ),
        *("--validation-episodes", "2", "--queries", "2", "--inner-lrs", "0.01", "--inner-steps", "1"),
        *(
            "--function-steps",
            "0",
            "--quiet",
            "--methods",
            "lora-ml",
            "--methods",
            "sr+lora",
            "--memory",
            "4GiB",
        ),
    )
    found = torchrun("metapeft", "train", "--out", str(tmp_path / "x"), *tiny)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("lora-ml: ") == 1  # rank 0 alone speaks
    results = json.loads((tmp_path / "x" / "results.json").read_text())
    assert sorted(results["rows"]) == ["lora-ml", "sr+lora"]
    again = torchrun("metapeft", "train", "--out", str(tmp_path / "x"), *tiny)
    assert again.returncode != 0
    assert "holds a run already" in again.stderr
    nameless = torchrun("metapeft", "train", *tiny, options=("--max-restarts", "1"))
    assert "--max-restarts needs --out" in nameless.stderr


def test_going_on_with_another_number_of_processes_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = mp.BilevelTrainer(learner(), tasks_per_step=2, progress=False)
    own.fit(sampler(), 3, run_dir=tmp_path / "run", stop_at=1)
    with Run.open(tmp_path / "run") as run:
        tree, metadata = run.load("latest")
        run.save("latest", {**tree, "processes": 2}, metadata)
    own.resume(tmp_path / "run", sampler())
    assert (
        "1 processes go on where 2 stopped: the same means up to rounding, not the same bits" in caplog.text
    )

"""Sweeps over seeds and methods: as processes here, and through the commands of a SLURM cluster."""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from metapeft.cli import run
from metapeft.cli.sweep_jobs import Job

pytest.importorskip("submitit", reason="pip install 'metapeft[slurm]'")

TINY = [
    *("--width", "4", "--tasks-per-step", "1", "--episodes", "2", "--validation-episodes", "2", "--queries", "2"),
    *("--inner-lrs", "0.01", "--inner-steps", "1", "--pretrain-steps", "2", "--steps", "2", "--processors", "1"),
]  # fmt: skip
# What a cluster has, in small: sbatch queues an array, each of whose jobs runs the batch script, which calls srun.
SBATCH = r"""#!/bin/bash
script=$PWD/queued-$$.sh; cp "${@: -1}" "$script"; echo "$@" >> submissions
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
(sleep 1
for place in $(seq 0 "${last:-0}"); do
    SLURM_JOB_ID=$((8 + place)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$place SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 \
        SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 bash "$script"
done; touch ended) < /dev/null > queue.log 2>&1 &
echo "Submitted batch job 7"
"""
SRUN = r"""#!/bin/bash
while [[ $1 == --* ]]; do [ "$1" == --unbuffered ] && shift || shift 2; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the commands of a cluster in the path."""
    for name, content in (("sbatch", SBATCH), ("srun", SRUN)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_sweep_on_a_cluster_is_submitted_once_and_then_read(cluster: Path, capsys: Any) -> None:
    command = [
        "sweep",
        "--out",
        "all",
        "--cluster",
        "slurm",
        "--partition",
        "small",
        "--job-memory",
        "3GiB",
        *TINY,
    ]
    command += ["--seeds", "0", "--seeds", "5", "--methods", "centroids", "--methods", "other-task"]
    assert run(command) == 0
    assert "submitted 4 jobs: 7_0, 7_1, 7_2, 7_3" in capsys.readouterr().out
    assert run(command) == 0  # while they wait or run
    printed = capsys.readouterr().out
    assert "submitted" not in printed
    assert "jobs have not ended: call the same command again" in printed
    latest = time.monotonic() + 300
    while not (cluster / "ended").exists():
        assert time.monotonic() < latest, (cluster / "queue.log").read_text()
        time.sleep(0.2)
    [script] = cluster.glob("queued-*.sh")
    for line in ("--array=0-3%1", "--cpus-per-task=1", "--mem=3GB", "--partition=small", "--time=60"):
        assert f"#SBATCH {line}\n" in script.read_text()
    assert run(command) == 0
    assert "mean over 2 seed(s)" in capsys.readouterr().out
    # the second call had nothing to submit
    assert len((cluster / "submissions").read_text().splitlines()) == 1
    found = json.loads((cluster / "all" / "sweep.json").read_text())
    for method in ("centroids", "other-task"):
        for column in ("plain", "shifted"):
            rows = [
                json.loads((cluster / "all" / f"{method}-{seed}" / "results.json").read_text())
                for seed in (0, 5)
            ]
            assert [row["config"]["seed"] for row in rows] == [0, 5]
            accuracies = [row["rows"][method]["columns"][column]["accuracy"] for row in rows]
            assert found["accuracies"][method][column] == accuracies
            told, (a, b) = found["summary"][method][column], accuracies
            interval = (
                scipy.stats.t.interval(0.95, 1, loc=(a + b) / 2, scale=abs(a - b) / 2) if a != b else (a, a)
            )
            assert told["mean"] == pytest.approx((a + b) / 2)
            assert told["ci95"] == pytest.approx((interval[1] - interval[0]) / 2, abs=1e-12)


@pytest.mark.slow
def test_a_sweep_here_says_which_job_failed_and_goes_on_where_it_was(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "all"
    command = [
        "sweep",
        "--out",
        str(out),
        "--parallel",
        "2",
        *TINY,
        "--methods",
        "centroids",
        "--seeds",
        "1",
        "--seeds",
        "2",
    ]
    (out / "jobs").mkdir(parents=True)
    (out / "centroids-2").mkdir()
    (out / "centroids-2" / "mine.txt").write_text("kept")  # no run folder, so this job cannot start
    assert run(command) == 2
    printed = capsys.readouterr()
    assert "centroids-1: done" in printed.out
    assert "1 of 2 jobs failed: centroids-2; logs are in" in printed.err
    assert "mine.txt" in "".join(path.read_text() for path in (out / "jobs").glob("*.err"))
    before = (out / "centroids-1" / "results.json").stat().st_mtime_ns
    (out / "centroids-2" / "mine.txt").unlink()
    assert run(command) == 0
    assert "centroids-1: done" not in capsys.readouterr().out
    assert (out / "centroids-1" / "results.json").stat().st_mtime_ns == before
    assert set(json.loads((out / "sweep.json").read_text())["accuracies"]) == {"centroids"}


SACCT = r"""#!/bin/bash
printf 'JobID|State|NodeList\n7_0|OUT_OF_MEMORY|here\n7_1|PENDING|here\n'
"""


def test_a_job_of_a_cluster_that_failed_is_named_and_the_next_call_starts_it_again(
    cluster: Path, capsys: Any
) -> None:
    (cluster / "sbatch").write_text('#!/bin/bash\necho "$@" >> submissions; echo "Submitted batch job 7"\n')
    (cluster / "sacct").write_text(SACCT)
    (cluster / "sacct").chmod(0o755)
    command = [
        "sweep",
        "--out",
        "all",
        "--cluster",
        "slurm",
        "--methods",
        "maml",
        "--seeds",
        "0",
        "--seeds",
        "1",
        *TINY,
    ]
    assert run(command) == 0
    assert "submitted 2 jobs: 7_0, 7_1" in capsys.readouterr().out
    assert run(command) == 2
    printed = capsys.readouterr()
    assert "maml-0: job 7_0 ended without results: OUT_OF_MEMORY" in printed.out
    assert "maml-1: job 7_1, PENDING" in printed.out
    assert "1 of 2 jobs failed: maml-0" in printed.err
    assert len((cluster / "submissions").read_text().splitlines()) == 1
    assert run(command) == 0
    assert "submitted 1 jobs" in capsys.readouterr().out
    (cluster / "all" / "jobs" / "submitted.json").write_text("[1")
    assert run(command) == 2
    assert "submitted.json is damaged" in capsys.readouterr().err


def test_a_job_that_is_taken_away_is_started_again_as_it_was() -> None:
    job = Job("options.json", "run")
    again = job.checkpoint()
    assert again.function == job
    assert (again.args, again.kwargs) == ((), {})


def test_a_job_that_an_earlier_version_queued_is_read() -> None:
    """Its pickle names the file where the class was then."""
    job = Job("options.json", "run")
    queued = pickle.dumps(job, protocol=2).replace(b"metapeft.cli.sweep_jobs", b"metapeft.sweeping")
    assert b"metapeft.sweeping" in queued
    assert pickle.loads(queued) == job  # noqa: S301 (made above)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed", "3"], "seed: a sweep takes seeds"),
        (["--threads", "1"], "threads: a sweep takes processors"),
        (["--seeds", "1", "--seeds", "1"], "each once"),
        (["--parallel", "0"], "--parallel 0"),
        (["--job-memory", "8"], "--job-memory 8"),
        (["--partition", "small"], "--partition small has no effect with --cluster local"),
        (["--methods", "maml", "--methods", "mamI"], "did you mean 'maml'"),
    ],
)
def test_refused_before_anything_is_written(
    options: list[str], sentence: str, tmp_path: Path, capsys: Any
) -> None:
    assert run(["sweep", "--out", str(tmp_path / "all"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def test_a_cluster_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["sweep", "--out", str(tmp_path / "all"), "--cluster", "slurm", "--methods", "maml"]) == 2
    assert "srun" in capsys.readouterr().err


def test_options_of_an_earlier_sweep_stay(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "maml-0.json").write_text("{}\n")
    command = ["sweep", "--out", str(tmp_path), "--seeds", "0", "--methods", "anil", "--methods", "maml"]
    assert run(command) == 2
    assert not (tmp_path / "anil-0.json").exists()  # nothing is half-written
    assert "maml-0.json has other options, of an earlier sweep" in capsys.readouterr().err
    assert (tmp_path / "maml-0.json").read_text() == "{}\n"

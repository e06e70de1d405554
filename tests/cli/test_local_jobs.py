"""Jobs of a sweep on this machine: they end with the process that started them, and nothing of theirs is unpickled."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metapeft.cli import local_jobs
from metapeft.cli.local_jobs import run_jobs
from metapeft.cli.sweep_jobs import standing

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a parent that dies is POSIX's")

PARENT = """
import sys
from pathlib import Path
from metapeft.cli import local_jobs
local_jobs._EVERY = 0.05
run_jobs = local_jobs.run_jobs
run_jobs({"a": ["data", "glyphs"]}, Path(sys.argv[1]), 1, 1, print)
"""
# in the place of `python -m metapeft`: a job that says its number, and goes on until it is asked to end
JOB = """
import os, signal, sys, time
from pathlib import Path
from metapeft.cli import local_jobs
local_jobs._EVERY = 0.05
def ended(*_):
    Path(r"{folder}", "ended").write_text("yes")
    sys.exit(143)
signal.signal(signal.SIGTERM, ended)
local_jobs.end_with_parent()
Path(r"{folder}", "job").write_text(str(os.getpid()))
time.sleep(60)
"""


def until(path: Path, seconds: float = 60) -> None:
    latest = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < latest
        time.sleep(0.05)


def test_a_job_ends_with_its_parent(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(JOB.format(folder=tmp_path))
    starter = tmp_path / "python"
    starter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{job}"\n')
    starter.chmod(0o755)
    code = PARENT.replace("import sys\n", f"import sys\nsys.executable = {str(starter)!r}\n", 1)
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    until(tmp_path / "job")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(tmp_path / "ended")


def test_jobs_say_how_they_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starter = tmp_path / "python"
    starter.write_text(
        '#!/bin/sh\necho "$3"; echo odd >&2; [ "$3" = good ] && exit 0; [ "$3" = slow ] && sleep 60; exit 3\n'
    )
    starter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(starter))
    monkeypatch.setattr(local_jobs, "_EVERY", 0.02)
    ended: dict[str, str | None] = {}
    jobs = {name: [name] for name in ("good", "bad")}
    run_jobs(jobs, tmp_path, 2, 5, lambda name, error: ended.update({name: error}))
    assert ended == {"good": None, "bad": "it ended with exit code 3"}
    assert (tmp_path / "bad.err").read_text() == "odd\n"
    run_jobs({"slow": ["slow"]}, tmp_path, 1, 0.003, lambda name, error: ended.update({name: error}))
    assert ended["slow"] == "it took more than 0.003 minutes"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def test_a_folder_that_is_handed_over_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no sacct
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    for name in ("7_0_0_result.pkl", "7_0_submitted.pkl", "7_result.pkl"):
        (jobs / name).write_bytes(pickle.dumps(("success", Evil())))
    assert not standing(tmp_path, "maml-0", "7_0")[1]
    (jobs / "maml-0.outcome.json").write_text(json.dumps({"code": 2}))
    assert standing(tmp_path, "maml-0", "7_0") == ("exit code 2", True)
    assert not (tmp_path / "ran").exists()

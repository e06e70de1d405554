"""Run folders: what is kept, who may write, what is refused, and that earlier runs stay untouched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

import metapeft as mp
from metapeft.training.runs import environment
from metapeft.training.runs.run import Run

HOLD = (
    "import sys, time\nfrom metapeft.training.runs.run import Run\nrun = Run.open(sys.argv[1])\n"
    "print('held', flush=True)\ntime.sleep(60)\n"
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_create_and_open(tmp_path):
    folder = tmp_path / "a" / "b"
    config = {"ways": 5, "lr": 0.1, "targets": ["conv*"], "seed": None}
    with Run.create(folder, config) as run:
        assert run.config == config
        run.save("latest", {"w": torch.ones(2)}, {"step": 3})
    with Run.open(folder) as run:
        assert run.config == config
        assert {"sealed": True, **run.environment, "sha256": ANY} == json.loads(
            (folder / "environment.json").read_text()
        )
        tree, metadata = run.load("latest")
        assert (tree["w"].tolist(), metadata) == ([1, 1], {"step": 3})
        assert not run.checkpoint("best").exists()


def test_environment():
    found = environment.environment()
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]


def test_commit(tmp_path):
    """The commit of the checkout that holds the code, marked where files differ; else none."""
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert environment._commit(package) is None

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=package, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    assert environment._commit(package) is None  # a checkout around it, of something else
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    assert environment._commit(package) == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = 1")
    assert environment._commit(package) == git("rev-parse", "HEAD") + "+changes"


def test_metrics(tmp_path):
    with Run.create(tmp_path / "x", {}) as run:
        assert run.metrics() == []
        run.log(0, loss=torch.tensor(0.5), name="train", sizes=(1, 2))
        run.log(1, loss=float("nan"), by={"a": torch.tensor(3), 2: float("inf")})
        rows = (tmp_path / "x" / "metrics.jsonl").read_text()
        assert len(rows.splitlines()) == 2  # already there, not only at the end
        assert run.metrics() == [
            {"step": 0, "loss": 0.5, "name": "train", "sizes": [1, 2]},
            {"step": 1, "loss": None, "by": {"a": 3, "2": None}},
        ]


def test_resume_drops_later_rows(tmp_path):
    with Run.create(tmp_path / "x", {}) as run:
        for step in range(6):
            run.log(step, loss=step / 7)
    with open(tmp_path / "x" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a row
    with Run.open(tmp_path / "x") as run:
        run.log(6, loss=0)
        assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3, 4, 5, 6]
        run.truncate(3)
        run.log(4, loss=1)
        run.truncate(9)
        run.log(5, loss=2)
        assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3, 4, 5]
        assert run.metrics()[:4] == [{"step": step, "loss": step / 7} for step in range(4)]


def test_damaged_metrics(tmp_path):
    with Run.create(tmp_path / "x", {}) as run:
        run.log(0)
        (tmp_path / "x" / "metrics.jsonl").write_text('{"step": 0\n{"step": 1}\n')
        with pytest.raises(mp.RunError, match=r"metrics.jsonl is damaged"):
            run.metrics()


def test_a_second_process_is_refused_by_the_first_ones_number(tmp_path):
    Run.create(tmp_path / "x", {"a": 1}).close()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            before = contents(tmp_path / "x")
            for attempt in (Run.open, lambda folder: Run.create(folder, {})):
                with pytest.raises(mp.RunError, match=rf"in use by process {process.pid}: wait|holds a run"):
                    attempt(tmp_path / "x")
            assert Run.open(tmp_path / "x", writable=False).config == {"a": 1}
            assert contents(tmp_path / "x") == before
        finally:
            process.send_signal(signal.SIGKILL)
    with Run.open(tmp_path / "x") as run:  # the system freed the lock when it died
        run.log(0)


def test_a_second_run_in_one_process_is_refused(tmp_path):
    with Run.create(tmp_path / "x", {}) as run:
        with pytest.raises(mp.RunError, match="in use by this process"):
            Run.open(tmp_path / "x")
        Run.open(tmp_path / "x", writable=False).close()
        run.log(0)
    Run.open(tmp_path / "x").close()


def test_a_forked_worker_does_not_hold_the_lock(tmp_path):
    """A data loader's worker that outlives the trainer for a moment does not keep the run."""
    Run.create(tmp_path / "x", {}).close()
    forked = "import os\nif not os.fork():\n    print(os.getpid(), flush=True)"
    code = HOLD.replace("print('held', flush=True)", forked)
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            os.kill(worker, 0)  # it lives
            Run.open(tmp_path / "x").close()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_only_one_of_many_creates(tmp_path):
    made, refused = [], []

    def create():
        try:
            made.append(Run.create(tmp_path / "x", {}))
        except mp.RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    made[0].close()


def test_earlier_run_is_untouched(tmp_path):
    with Run.create(tmp_path / "x", {"a": 1}) as run:
        run.log(0, loss=1)
        run.save("latest", {"a": 1})
    before = contents(tmp_path / "x")
    with pytest.raises(mp.RunError, match="holds a run already: resume it, or choose another folder"):
        Run.create(tmp_path / "x", {"a": 2})
    assert contents(tmp_path / "x") == before


def test_foreign_folder_is_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(mp.RunError, match=r"is no run folder: it holds 'thesis.tex'"):
        Run.create(tmp_path, {})
    with pytest.raises(mp.RunError, match=r"is no run folder of metapeft: it has no config.json"):
        Run.open(tmp_path)
    with pytest.raises(mp.RunError, match="is a file: a run needs a folder"):
        Run.create(tmp_path / "thesis.tex", {})
    with pytest.raises(mp.RunError, match="there is no such folder"):
        Run.open(tmp_path / "none")
    assert contents(tmp_path) == {"thesis.tex": b"years"}


def test_a_folder_whose_creation_was_killed_is_taken(tmp_path):
    for name in (".lock", "environment.json", ".config.json.partial"):
        (tmp_path / name).write_text("{")
    with Run.create(tmp_path, {"a": 1}) as run:
        assert run.config == {"a": 1}
    assert set(contents(tmp_path)) == {".lock", "environment.json", "config.json"}


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(mp.RunError, match="cannot be written: Not a directory"):
        Run.create(tmp_path / "file" / "x", {})
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):  # the administrator may write everywhere
        return
    for folder in (tmp_path / "locked", tmp_path / "locked" / "x"):
        with pytest.raises(mp.RunError, match="cannot be written: Permission denied"):
            Run.create(folder, {})


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
def test_damaged_folder(name, tmp_path):
    Run.create(tmp_path / "x", {}).close()
    (tmp_path / "x" / name).write_text('{"a"')
    with pytest.raises(mp.RunError, match=rf"{name} cannot be read"):
        Run.open(tmp_path / "x")
    (tmp_path / "x" / name).write_text("{}")
    Run.open(tmp_path / "x").close()  # the refusal did not keep the lock


def test_reading_does_not_write(tmp_path):
    Run.create(tmp_path / "x", {}).close()
    run = Run.open(tmp_path / "x", writable=False)
    before = contents(tmp_path)
    for write in (lambda: run.log(0), lambda: run.truncate(0), lambda: run.save("latest", {})):
        with pytest.raises(mp.RunError, match="opened for reading"):
            write()
    with pytest.raises(mp.RunError, match="No such file"):
        run.load("latest")
    assert contents(tmp_path) == before


def test_settings_that_json_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="must hold what JSON can say"):
        Run.create(tmp_path / "x", {"loss": torch.nn.functional.mse_loss})
    assert not (tmp_path / "x").exists()

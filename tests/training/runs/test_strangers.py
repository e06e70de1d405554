"""Run folders that others have prepared or damaged, systems without locks, and ends by signal."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.files import partial_of, write_atomically
from metapeft.base.state import digest
from metapeft.training.runs import checkpoint, lock
from metapeft.training.runs.run import Run
from tests.training.helpers import sampler, trainer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and signals are POSIX's")


def test_a_link_where_a_partial_file_would_be_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "bashrc"
    mine.write_text("alias ls=ls\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".report.html.partial").symlink_to(mine)
    write_atomically(tmp_path / "run" / "report.html", b"<html>")
    assert mine.read_text() == "alias ls=ls\n"
    assert (tmp_path / "run" / "report.html").read_bytes() == b"<html>"
    (tmp_path / "run" / "config.json").symlink_to(mine)
    write_atomically(tmp_path / "run" / "config.json", b"{}")  # the link itself is replaced
    assert mine.read_text() == "alias ls=ls\n"


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "environment.json", "checkpoints", "checkpoints/best.safetensors"]
)
def test_links_in_a_run_folder_are_refused(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    with Run.create(tmp_path / "x", {}) as run:
        run.log(0, loss=1.0)
        if "/" in name:
            run.save("latest", {"a": 1})
    path = tmp_path / "x" / name
    path.unlink(missing_ok=True)
    path.symlink_to(mine)
    for writable in (True, False):
        with pytest.raises(mp.RunError, match="is a link: a run folder holds files of its own"):
            Run.open(tmp_path / "x", writable)
    assert mine.read_text() == "kept"


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(mp.RunError, match="is a link"):
        lock.take(tmp_path / ".lock")
    assert (tmp_path / "mine").read_text() == "kept"


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_half_made_is_removed(tmp_path: Path) -> None:
    Run.create(tmp_path / "x", {}).close()
    live = partial_of(tmp_path / "x" / "config.json")
    left = live.with_name(live.name.replace(f"-{os.getpid()}-", f"-{dead()}-"))
    for path in (live, left):
        path.write_text("half")
    Run.open(tmp_path / "x").close()
    assert live.exists()  # of a process that is there
    assert not left.exists()


def test_a_file_system_without_locks_gets_a_file_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(lock, "lock_descriptor", without)
    run = Run.create(tmp_path / "x", {})
    assert "on a file system without locks (Operation not supported)" in caplog.text
    with pytest.raises(mp.RunError, match=r"in use by this process.*this folder has no locks"):
        Run.open(tmp_path / "x")
    run.close()
    Run.open(tmp_path / "x").close()
    held = tmp_path / "x" / ".lock.held"
    assert not held.exists()
    held.write_text(f"{os.uname().nodename} {dead()}")  # killed before it could remove it
    Run.open(tmp_path / "x").close()
    held.write_text("another-machine 1")
    with pytest.raises(mp.RunError, match="is in use"):
        Run.open(tmp_path / "x")


def test_metrics_that_vanish_are_written_again_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x" / "metrics.jsonl"
    with Run.create(tmp_path / "x", {}) as run:
        run.log(0, loss=1.0)
        path.unlink()
        run.log(1, loss=0.5)
        assert [row["step"] for row in run.metrics()] == [0, 1]
        assert "was removed or replaced while the run wrote it" in caplog.text
        run.save("latest", {"a": 1}, {"step": 1})
    path.unlink()
    with caplog.at_level(logging.WARNING, "metapeft"), Run.open(tmp_path / "x") as run:
        assert run.metrics() == []
        assert "is gone, of which the last checkpoint knows 2 rows" in caplog.text


def test_changed_metrics_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "x" / "metrics.jsonl"
    with Run.create(tmp_path / "x", {}) as run:
        run.log(0, loss=1.0)
        run.save("latest", {"a": 1}, {"step": 0})
        run.log(1, loss=0.5)
    path.write_text(path.read_text().replace("1.0", "1.5"))
    with Run.open(tmp_path / "x") as run, pytest.raises(mp.RunError, match="first 1 rows are not those"):
        run.metrics()


def test_one_changed_byte_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"w": torch.arange(6.0), "step": 3}, {"step": 3})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with contextlib.suppress(mp.RunError):
            tree, metadata = checkpoint.load(path)  # white space of the header
            assert (tree["w"].tolist(), tree["step"], metadata) == ([0, 1, 2, 3, 4, 5], 3, {"step": 3})


def test_a_checkpoint_without_a_trained_tensor_is_refused(tmp_path: Path) -> None:
    trainer().fit(sampler(), 4, run_dir=tmp_path / "x", stop_at=2)
    path = tmp_path / "x" / "checkpoints" / "latest.safetensors"
    tree, metadata = checkpoint.load(path)
    del tree["learner"]["weights.conv1.weight"]
    checkpoint.save(path, tree, metadata, checkpoint.said_beside(path))
    before = trainer()
    state = digest(before.learner.state())
    with pytest.raises(mp.RunError, match=r"lacks 'weights.conv1.weight', which would begin anew"):
        before.resume(tmp_path / "x", sampler())
    assert digest(before.learner.state()) == state


class Ending:
    """Episodes of which drawing one asks the process to end."""

    def __init__(self, at: int) -> None:
        self.at = at

    def batch(self, start: int, count: int) -> Any:
        if start == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return sampler().batch(start, count)


def test_sigterm_keeps_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = trainer()
    whole.fit(sampler(), 6)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        trainer().fit(Ending(8), 6, run_dir=tmp_path / "x", checkpoint_every=100)
    assert ended.value.code == 143
    assert "trainer.resume" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before
    with Run.open(tmp_path / "x", writable=False) as run:
        assert run.load("latest")[0]["step"] >= 2
    again = trainer()
    again.resume(tmp_path / "x", Ending(-1))
    assert digest(again.learner.state()) == digest(whole.learner.state())


def test_a_handler_of_others_stays(tmp_path: Path) -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        trainer().fit(Ending(4), 3, run_dir=tmp_path / "x")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [signal.SIGTERM]


def test_settings_that_were_changed_by_hand_are_refused_unless_that_is_meant(tmp_path: Path) -> None:
    Run.create(tmp_path / "x", {"ways": 5}).close()
    path = tmp_path / "x" / "config.json"
    path.write_text(path.read_text().replace("5,", "6,"))
    with pytest.raises(mp.RunError, match=r"its SHA-256 is another one.*'sha256' have to be removed"):
        Run.open(tmp_path / "x")
    path.write_text(json.dumps({"ways": 6}))
    with Run.open(tmp_path / "x") as run:
        assert run.config == {"ways": 6}

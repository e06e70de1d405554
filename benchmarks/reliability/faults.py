"""Faults other than a kill: a full disk, a read-only one, a second process, SIGTERM."""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.reliability.children import Child
from benchmarks.reliability.kills import left_alone
from benchmarks.reliability.work import WORKS, Work, content, leftovers

SHARES = (0.15, 0.5, 0.85)  # of the space that a work needs
LOCKED = ("train", "pretrain", "search")
PAGE = 4096


@contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A file system of its own, in memory; PermissionError where this user may not mount one."""
    mounted = place / "disk"
    mounted.mkdir(exist_ok=True)
    _mount(mounted, "size=64m", "-t", "tmpfs", "tmpfs")
    try:
        if (place / "raw").exists():
            (mounted / "raw").symlink_to(place / "raw")
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def _mount(mounted: Path, options: str, *more: str) -> None:
    done = subprocess.run(
        ["mount", "-o", options, *more, str(mounted)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PermissionError(f"mount: {done.stderr.strip()}")


class Trial:
    """One work in one place: what a fault did to it, and what the same work made of it afterwards.

    Args:
        name: of the work. place: for what children say. folder: the work's. expected: content of the work left alone.
    """

    def __init__(self, name: str, place: Path, folder: Path, expected: dict[str, str]) -> None:
        self.name, self.place, self.folder, self.expected = name, place, folder, expected
        self.work: Work = WORKS[name]

    def start(self, said: str = "fault") -> Child:
        """The work, in a fork."""
        return Child(functools.partial(self.work.run, self.folder), self.place / f"{said}.said")

    def row(self, fault: str, child: Child) -> dict[str, Any]:
        """How it ended, whether all is readable, and whether it went on to the same end."""
        ended = child.says() if child.said.exists() else {"error": None, "message": None}
        row = {"fault": fault, "work": self.name, "exit_code": child.code, **ended, "readable": True}
        if row["message"] is not None:
            row["message"] = str(row["message"]).replace(str(self.place), "FOLDER")
        try:
            if self.folder.exists():
                self.work.check(self.folder)
        except Exception as error:
            row.update(readable=False, unreadable=str(error))
        return row

    def went_on(self, row: dict[str, Any]) -> dict[str, Any]:
        """Go on without the fault, and compare."""
        child = self.start()
        same = child.wait() == 0 and content(self.folder) == self.expected
        row.update(went_on_to_the_same_end=same, leftovers=leftovers(self.folder))
        if child.code:
            row["then"] = child.says()["message"]
        shutil.rmtree(self.folder)
        return row


def tried(name: str, place: Path) -> list[dict[str, Any]]:
    """Every fault on one kind of work."""
    alone, seconds = left_alone(name, place)
    expected = content(alone)
    needed = sum(-(-path.stat().st_size // PAGE) * PAGE for path in alone.rglob("*") if path.is_file())
    found: list[dict[str, Any]] = []
    try:
        with disk(place) as mounted:
            trial = Trial(name, place, mounted / "part", expected)
            for share in SHARES:
                found.append(_full(trial, mounted, share, int(share * needed)))
            found.append(_read_only(trial, mounted, seconds))
    except PermissionError as error:
        found.append({"fault": "disk", "work": name, "not_tried": str(error)})
    trial = Trial(name, place, place / "part", expected)
    shutil.rmtree(trial.folder, ignore_errors=True)
    found.append(_told_to_end(trial, seconds))
    if name in LOCKED or name == "import":
        found.append(_second(trial))
    return found


def _full(trial: Trial, mounted: Path, share: float, size: int) -> dict[str, Any]:
    _mount(mounted, f"remount,size={max(size, PAGE)}")
    child = trial.start()
    child.wait()
    row = trial.row(f"full disk, {share:.0%} of the room", child)
    _mount(mounted, "remount,size=64m")
    return trial.went_on(row)


def _read_only(trial: Trial, mounted: Path, seconds: float) -> dict[str, Any]:
    child = trial.start()
    _until(child, 0.2 * seconds, lambda: False)
    child.kill()
    child.wait()
    before = content(mounted)
    _mount(mounted, "remount,ro")
    child = trial.start()
    child.wait()
    row = trial.row("read-only", child)
    row["unchanged"] = content(mounted) == before
    _mount(mounted, "remount,rw")
    return trial.went_on(row)


def _told_to_end(trial: Trial, seconds: float) -> dict[str, Any]:
    child = trial.start()
    begun = (lambda: any(trial.folder.rglob("metrics.jsonl"))) if trial.name in LOCKED else (lambda: False)
    _until(child, 60 if trial.name in LOCKED else 0.2 * seconds, begun)
    child.kill(signal.SIGTERM)
    child.wait()
    return trial.went_on(trial.row("SIGTERM", child))


def _second(trial: Trial) -> dict[str, Any]:
    """Two processes in one folder at the same moment; the row is of the one that is refused."""
    first, second = trial.start("first"), trial.start("second")
    codes = first.wait(), second.wait()
    row = trial.row("two processes", first if codes[0] else second)
    row.update(exit_codes=codes, same_end=content(trial.folder) == trial.expected)
    row["leftovers"] = leftovers(trial.folder)
    shutil.rmtree(trial.folder)
    return row


def _until(child: Child, seconds: float, done: Callable[[], bool]) -> None:
    latest = time.monotonic() + seconds
    while time.monotonic() < latest and not child.ended() and not done():
        time.sleep(0.001)

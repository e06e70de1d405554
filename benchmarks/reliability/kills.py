"""Work that is killed at random moments, again and again, and compared with the same work left alone."""

from __future__ import annotations

import contextlib
import functools
import importlib
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.children import KILLED, Child
from benchmarks.reliability.work import WORKS, Work, content, leftovers


def killed(
    name: str,
    place: Path,
    row: dict[str, Any],
    keep: Callable[[dict[str, Any]], None],
    kills: int | None = None,
) -> dict[str, Any]:
    """Kill one kind of work until its number of kills is reached; `keep` is called with the row after each.

    Args:
        name: of the work. place: a folder for it. row: what is known from before; `{}` for nothing.
        kills: how many; None for its own number.

    Returns: `{"kills", "whole_runs", "most_lost_steps", "unreadable", "differing", "leftovers", "seconds_alone"}`.
    """
    work: Work = WORKS[name]
    wanted = work.kills if kills is None else kills
    row = row or {
        "kills": 0,
        "whole_runs": 0,
        "most_lost_steps": 0,
        "unreadable": [],
        "differing": [],
        "leftovers": [],
    }
    if row["kills"] >= wanted:
        return row
    draw = random.Random(f"{name} {row['kills']}")
    part = place / f"{name}-killed"
    shutil.rmtree(part, ignore_errors=True)
    alone, seconds = left_alone(name, place)
    row["seconds_alone"] = round(seconds, 2)
    expected = content(alone)
    while row["kills"] < wanted or part.exists():
        child = Child(functools.partial(work.run, part), place / f"{name}.said")
        if row["kills"] < wanted:
            latest = time.monotonic() + draw.uniform(0.02, work.late) * seconds
            while time.monotonic() < latest and not child.ended():
                time.sleep(0.001)
            child.kill()
        if child.wait() == KILLED:
            row["kills"] += 1
            _check(work, part, row)
        else:
            _compare(child, part, expected, row)
            shutil.rmtree(part)
        keep(row)
    return row


def left_alone(name: str, place: Path) -> tuple[Path, float]:
    """The folder of a work that nothing happens to, and its seconds once all that it imports is at hand."""
    folder = place / f"{name}-alone"
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        child = Child(
            functools.partial(_alone, WORKS[name], folder, place / "modules"), place / f"{name}.said"
        )
        if child.wait() != 0:
            raise RuntimeError(f"{name} left alone failed: {child.says()}")
        seconds = time.monotonic() - child.begun
        _import((place / "modules").read_text().split())
    return folder, seconds


def _alone(work: Work, folder: Path, modules: Path) -> None:
    """The work, and a list of what it has imported."""
    work.run(folder)
    modules.write_text("\n".join(sys.modules))


def _import(names: list[str]) -> None:
    """Import what a fork had to, so that the next ones need not."""
    for name in names:
        if "__" not in name and name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _check(work: Work, part: Path, row: dict[str, Any]) -> None:
    """Read all that a kill left behind."""
    try:
        if part.exists():
            row["most_lost_steps"] = max(row["most_lost_steps"], work.check(part))
    except Exception as error:
        row["unreadable"].append(f"after kill {row['kills']}: {error}")


def _compare(child: Child, part: Path, expected: dict[str, str], row: dict[str, Any]) -> None:
    """Compare what came to its end, after kills, with the work left alone."""
    if child.code != 0:
        row["differing"].append(f"after kill {row['kills']} it did not go on: {child.says()['message']}")
        return
    found = content(part)
    odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    row["whole_runs"] += 1
    row["differing"] += odd
    row["leftovers"] += leftovers(part)

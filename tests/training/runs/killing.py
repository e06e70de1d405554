"""Runs that are killed while they are seen to work, and what they leave behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch

from metapeft.base.state import digest


def last_step(folder: Path) -> int:
    """The step of the last whole row of a run's metrics.jsonl; 0 before there is one."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0


def wait_for(folder: Path, step: int, alive: Callable[[], bool], seconds: float = 240) -> None:
    """Return as soon as the run has logged this step; fails where its process ends before that."""
    latest = time.monotonic() + seconds
    while last_step(folder) < step:
        assert alive(), f"the process ended after step {last_step(folder)} of {folder}, before {step}"
        assert time.monotonic() < latest, f"{folder} is still at step {last_step(folder)}, before {step}"
        time.sleep(0.001)


def contents(folder: Path) -> dict[str, str]:
    """Path of every file of tensors and of metrics below a folder -> a digest, or the rows."""
    found = {
        path.relative_to(folder).as_posix(): digest(safetensors.torch.load_file(path))
        for path in folder.rglob("*.safetensors")
    }
    rows = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("metrics.jsonl")}
    return dict(sorted({**found, **rows}.items()))

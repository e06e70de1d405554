"""One process that trains, evaluates, adapts, exports and reads again for a long time."""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import metapeft as mp
from benchmarks.reliability.work import body, images

STEPS, EPISODES, ROUNDS = 2000, 5000, 50


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def soak(folder: Path, minutes: float) -> dict[str, Any]:
    """Outer steps and episodes in rounds, each of which goes on with the run from disk; then on until the time is up.

    Returns: what was done, and memory and file descriptors after each round.
    """
    torch.set_num_threads(1)
    begun, rows, number = time.monotonic(), [], 0
    learner = mp.methods.lora_ml(body(), rank=2, inner=mp.inner.SGD(2, 0.05))
    trainer = mp.BilevelTrainer(learner, tasks_per_step=2, progress=False)
    episodes, judged = (mp.EpisodeSampler(images(split), 3, 1, 2) for split in ("train", "val"))
    steps, tried, each = 0, 0, STEPS // ROUNDS
    while number < ROUNDS or time.monotonic() - begun < 60 * minutes:
        number += 1
        run = folder / f"run-{(number - 1) // ROUNDS}"
        at = each * ((number - 1) % ROUNDS + 1)
        if trainer.has_run(run):
            trainer.resume(run, episodes, judged, stop_at=at)
        else:
            every: dict[str, Any] = {"checkpoint_every": 5, "validate_every": 10, "validation_episodes": 4}
            trainer.fit(episodes, STEPS, judged, run, stop_at=at, **every)
        steps += each
        mp.evaluate(learner, judged, episodes=EPISODES // ROUNDS)
        tried += EPISODES // ROUNDS
        task = episodes[number]
        adapter = folder / f"adapter-{number}"
        adapted = learner.adapt(task.support_x, task.support_y)
        adapted.export_peft(adapter)
        base = mp.load_base(body(), adapter)
        mp.from_peft(base, adapter)
        gc.collect()
        rows.append({"steps": steps, "mib": round(resident() / 2**20, 1), "files": open_files()})
    return {
        "seconds": round(time.monotonic() - begun),
        "steps": steps,
        "episodes": tried,
        "rounds": rows,
        **flat(rows),
    }


def flat(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Memory in the second and the last quarter of the rounds, its growth, and the file descriptors.

    Example:
        >>> flat([{"mib": 100.0, "files": 5}] * 7 + [{"mib": 101.0, "files": 5}])["mib_last_quarter"]
        100.5
    """
    quarter = len(rows) // 4
    second = statistics.median(row["mib"] for row in rows[quarter : 2 * quarter])
    last = statistics.median(row["mib"] for row in rows[-quarter:])
    files = sorted({row["files"] for row in rows[quarter:]})
    return {
        "mib_second_quarter": second,
        "mib_last_quarter": last,
        "growth": round(last / second - 1, 4),
        "open_files": files,
    }

"""What a second process brings: the same outer steps by one single-threaded process and by two of them.

    python -m benchmarks.processes [--json FILE] [--check]

Both take 16 tasks of W1 an outer step (benchmarks/speed_problems.py); two ranks take 8 each and average gradients.
Where the rest goes is seen from steps of 8 tasks: by a process alone, and by two that know nothing of each other.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
from cyclopts import App, Parameter

import metapeft as mp
from benchmarks.speed_problems import W1
from metapeft.training.outer_loop import OuterLoop
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "processes.json"
BAR = 1.7


class Noise:
    """Episodes of noise, the same ones at every step."""

    def __init__(self) -> None:
        self.all = W1.batch()

    def batch(self, start: int, count: int) -> mp.EpisodeBatch:
        first = start % W1.tasks
        return self.all.tasks(slice(first, first + count))


@app.command
def one(out: Path, *, steps: int, tasks: int = W1.tasks) -> None:
    """Train for some outer steps and write the seconds of each; a rank of torchrun, or a process alone."""
    torch.set_num_threads(1)
    mp.keep_freed_memory()  # as `metapeft train` does
    trainer = mp.BilevelTrainer(W1.learner(W1.body()), tasks_per_step=tasks, chunk=tasks, progress=False)
    step, times = OuterLoop.outer_step, []

    def timed(loop: OuterLoop, batch: Any) -> None:
        begun = time.perf_counter()
        step(loop, batch)
        times.append(time.perf_counter() - begun)

    with patch.object(OuterLoop, "outer_step", timed):
        trainer.fit(Noise(), steps + 1)
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps(times[1:]), encoding="utf-8")


#: what runs -> processes of torchrun (0: none), tasks of a step, how many such at once
KINDS = {"one": (0, 16, 1), "two": (2, 16, 1), "half": (0, 8, 1), "half beside another": (0, 8, 2)}


def seconds(kind: str, steps: int, folder: Path) -> list[float]:
    """Seconds of the steps of one kind; of the first where several run at once."""
    ranks, tasks, copies = KINDS[kind]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks else []
    files = [folder / f"{i}.json" for i in range(copies)]
    running = [
        subprocess.Popen(
            [
                sys.executable,
                *launch,
                "-m",
                "benchmarks.processes",
                "one",
                str(file),
                f"--{steps=}",
                f"--{tasks=}",
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for file in files
    ]
    if any(process.wait() for process in running):
        raise SystemExit(f"a process of {kind!r} failed")
    found: list[float] = json.loads(files[0].read_text(encoding="utf-8"))
    return found


@app.default
def main(
    *,
    json_file: Annotated[Path, Parameter(name="--json")] = RESULTS,
    rounds: int = 3,
    steps: int = 3,
    check: bool = False,
) -> None:
    """Time one and two processes in turn.

    Args:
        json_file: where the seconds go. rounds: of each. steps: timed in each round. check: exit with 1 below 1.7.
    """
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for kind, found in times.items():
                found += seconds(kind, steps, Path(folder))
    medians = {kind: statistics.median(found) for kind, found in times.items()}
    ratio = medians["one"] / medians["two"]
    content = {
        "workload": vars(W1), "median_s": medians, "seconds": times, "ratio": ratio, "bar": BAR,
        "passed": ratio >= BAR, "cores": os.cpu_count(), "environment": environment(),
    }  # fmt: skip
    json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{kind} {median:.2f} s" for kind, median in medians.items()) + f": {ratio:.2f} x")
    if check and ratio < BAR:
        raise SystemExit(1)


if __name__ == "__main__":
    app()

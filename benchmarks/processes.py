"""What a second process brings: the same outer steps by one single-threaded process and by two of them.

    python -m benchmarks.processes [--json FILE] [--check]

Both take 16 tasks of W1 an outer step (benchmarks/speed_problems.py); two ranks take 8 each and average gradients.
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

import torch
from cyclopts import App, Parameter

import metapeft as mp
from benchmarks.speed_problems import W1
from metapeft.environment import environment

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
def one(out: Path, *, steps: int) -> None:
    """Train for some outer steps and write the seconds of each; a rank of torchrun, or a process alone."""
    torch.set_num_threads(1)
    mp.keep_freed_memory()  # as `metapeft train` does
    trainer = mp.BilevelTrainer(
        W1.learner(W1.body()), tasks_per_step=W1.tasks, chunk=W1.tasks, progress=False
    )
    step, times = trainer.outer_step, []

    def timed(batch: Any) -> None:
        begun = time.perf_counter()
        step(batch)
        times.append(time.perf_counter() - begun)

    trainer.outer_step = timed
    trainer.fit(Noise(), steps + 1)
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps(times[1:]), encoding="utf-8")


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
    times: dict[int, list[float]] = {1: [], 2: []}
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        for _ in range(rounds):
            for count in times:
                launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
                command = [*launch, "-m", "benchmarks.processes", "one", str(out), "--steps", str(steps)]
                subprocess.run([sys.executable, *command], env=variables, check=True, capture_output=True)
                times[count] += json.loads(out.read_text(encoding="utf-8"))
    medians = {count: statistics.median(found) for count, found in times.items()}
    ratio = medians[1] / medians[2]
    content = {
        "workload": vars(W1), "median_s": medians, "seconds": times, "ratio": ratio, "bar": BAR,
        "passed": ratio >= BAR, "cores": os.cpu_count(), "environment": environment(),
    }  # fmt: skip
    json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"one process {medians[1]:.2f} s a step, two {medians[2]:.2f} s: {ratio:.2f} x")
    if check and ratio < BAR:
        raise SystemExit(1)


if __name__ == "__main__":
    app()

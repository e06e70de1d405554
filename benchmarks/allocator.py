"""What reusing freed memory brings: the same steps with and without `mp.keep_freed_memory()`, in alternating processes.

    python -m benchmarks.allocator [--json FILE]

Processor seconds of one thread, user and system, so that other work on the machine counts little.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

import metapeft as mp
from benchmarks.speed_problems import WORKLOADS
from metapeft.training.image_groups import ImageGroups
from metapeft.training.retraining_task import Pretraining
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "allocator.json"


def retraining() -> Callable[[], Any]:
    """A step of standard retraining on 64 images of 84x84, Conv-4-64."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(1, 64, 3, 84, 84, generator=random)
    labels = torch.randint(0, 64, (1, 64), generator=random)
    body = mp.backbones.conv4(ways=64, channels=3, width=64, size=84, seed=0)
    task = Pretraining(mp.attach(body, {}), classes=64)
    return lambda: task.hypergradient(ImageGroups(images, labels))


def meta_step(name: str) -> Callable[[], Any]:
    """A step of the speed benchmark."""
    workload = WORKLOADS[name]
    learner, batch = workload.learner(workload.body()), workload.batch()
    return lambda: learner.hypergradient(batch)


STEPS: dict[str, Callable[[], Callable[[], Any]]] = {
    "retraining, 84x84": retraining,
    "W1": lambda: meta_step("W1"),
    "W1, T = 64": lambda: meta_step("W1, T = 64"),
    "MAML": lambda: meta_step("MAML"),
}


@app.command
def one(name: str, *, keep: bool = False, repeats: int = 3) -> None:
    """Print the processor seconds of some steps, after one that is not counted."""
    torch.set_num_threads(1)
    if keep and not mp.keep_freed_memory():
        raise SystemExit("this C library has no mallopt")
    step = STEPS[name]()
    step()
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        step()
        seconds.append(time.process_time() - begun)
    print(json.dumps(seconds))


@app.default
def main(*, json_file: Annotated[Path, Parameter(name="--json")] = RESULTS, rounds: int = 3) -> None:
    """Time every step with and without, in turn.

    Args:
        json_file: where the seconds go. rounds: processes of each kind.
    """
    found: dict[str, Any] = {}
    for name in STEPS:
        seconds: dict[str, list[float]] = {"leave": [], "keep": []}
        for _ in range(rounds):
            for kind, times in seconds.items():
                command = [sys.executable, "-m", "benchmarks.allocator", "one", name]
                command += ["--keep"] if kind == "keep" else []
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                times += json.loads(done.stdout)
        medians = {kind: statistics.median(times) for kind, times in seconds.items()}
        found[name] = {"median_s": medians, "seconds": seconds, "ratio": medians["leave"] / medians["keep"]}
        print(f"{name}: {medians['leave']:.2f} s, {medians['keep']:.2f} s with freed memory kept", flush=True)
    content = {"steps": found, "rounds": rounds, "environment": environment()}
    json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()

"""What forwards in bfloat16 change: python -m benchmarks.bfloat16 [--json FILE]

The gradient and the time of a meta-step (W1), and the accuracy of a row of the few-shot benchmark (Omniglot, the kept
start, LoRA and head fitted at test with the rate and steps that were chosen in float32) on the same episodes. Data:
$METAPEFT_DATA.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

import metapeft as mp
from benchmarks.few_shot import RESULTS as ROWS_FOLDER
from benchmarks.few_shot import splits, sr_start
from benchmarks.speed import timed
from benchmarks.speed_problems import WORKLOADS
from metapeft.base.machine.precision import has_bfloat16
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "bfloat16.json"
TYPES = {"float32": None, "bfloat16": torch.bfloat16}


def step(repeats: int) -> dict[str, Any]:
    """Seconds of W1 in both types, in turn; cosine and ratio of norms of the two gradients."""
    workload = WORKLOADS["W1"]
    batch, learners = workload.batch(), {}
    for name, autocast in TYPES.items():
        learners[name] = workload.learner(workload.body())
        learners[name].autocast = autocast
    grads = {name: own.hypergradient(batch).grads for name, own in learners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in TYPES}
    for _ in range(repeats):
        for name, own in learners.items():
            seconds[name].append(timed(lambda own=own: own.hypergradient(batch).grads))  # type: ignore[misc]
    exact, rounded = (torch.cat([g.double().flatten() for g in found.values()]) for found in grads.values())
    return {
        "seconds": seconds,
        "median_s": {name: statistics.median(times) for name, times in seconds.items()},
        "cosine": float(exact @ rounded / (exact.norm() * rounded.norm())),
        "norm_ratio": float(rounded.norm() / exact.norm()),
    }


def accuracy(episodes: int) -> dict[str, Any]:
    """Accuracies in both types, and their paired difference."""
    chosen = json.loads((ROWS_FOLDER / "omniglot-plain-sr+lora-0.json").read_text(encoding="utf-8"))["chosen"]
    start = sr_start("omniglot", ROWS_FOLDER / "starts" / "omniglot-sr-continued-0", 0)
    test = splits("omniglot", "plain", 0)["test"]
    found = {}
    for name, autocast in TYPES.items():
        learner = mp.methods.sr_lora(
            start, preprocess=test.dataset.preprocess, autocast=autocast,
            head=mp.heads.PrototypeInit(scale=chosen["scale"]),
            inner=mp.inner.SGD(chosen["steps"], chosen["lr"]),
        )  # fmt: skip
        found[name] = mp.evaluate(learner, test, episodes)
    apart = mp.compare(found["bfloat16"], found["float32"])
    return {
        "protocol": str(found["float32"].protocol),
        **{name: [one.accuracy, one.ci95] for name, one in found.items()},
        "difference": [apart.difference, apart.ci95],
    }


@app.default
def main(
    *,
    json_file: Annotated[Path, Parameter(name="--json")] = RESULTS,
    repeats: int = 3,
    episodes: int = 600,
    threads: int = 2,
) -> None:
    """Measure both.

    Args:
        json_file: where the numbers go. repeats: of the step. episodes: test episodes. threads: of torch.
    """
    torch.set_num_threads(threads)
    found = {
        "arithmetic": has_bfloat16(torch.device("cpu")), "threads": threads, "step": step(repeats),
        "accuracy": accuracy(episodes), "environment": environment(),
    }  # fmt: skip
    json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: found[name] for name in ("step", "accuracy")}, indent=1))


if __name__ == "__main__":
    app()

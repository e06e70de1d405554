"""How much faster the linear figures come than by the way of the official code.

That way: every gradient step multiplies all N samples of a task (`(A + U U^T) X - Y`, one matrix product
each way), one run after another, one method after the other. Written here anew from the published protocol,
in NumPy as ours, so that the ratio is the algorithm's and not a library's. It takes an hour, so a stated
fraction of its steps is timed and scaled up; ours is timed in full, both in one process, on as many threads
as NumPy is given.

    python -m benchmarks.theory_speed --json benchmarks/results/theory_speed.json --check
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from metapeft.training.runs.environment import environment
from theory.figures.sweeps import (
    METHODS,
    OUTER_STEPS,
    RATE,
    RUNS,
    STEPS,
    SWEEPS,
    TUNE_RATE,
    linear_sweeps,
    settings,
)
from theory.models.problems import Array, LinearSetting

BAR = 50.0
INNER_STEPS, INNER_RATE, START = 10, 0.003, 0.1


def samples(
    generator: np.random.Generator, setting: LinearSetting, tasks: int, count: int
) -> tuple[Array, Array]:
    """Raw samples of so many tasks, `X` and `Y` `(tasks, d, count)`."""
    x = generator.standard_normal((tasks, setting.d, count))
    maps = generator.standard_normal((tasks, setting.d, setting.d))
    return x, maps @ x + setting.sigma**2 * generator.standard_normal(x.shape)


def meta_train(x: Array, y: Array, steps: int, rank: int, generator: np.random.Generator) -> Array:
    """LoRA-ML's outer steps with all residuals in each: 10 on every U, then one on A."""
    tasks, d, count = x.shape
    base, factors = np.zeros((d, d)), START * generator.standard_normal((tasks, d, rank))
    for _ in range(steps):
        for _ in range(INNER_STEPS):
            for t in range(tasks):
                slope = ((base + factors[t] @ factors[t].T) @ x[t] - y[t]) @ x[t].T / count
                factors[t] -= INNER_RATE * (slope + slope.T) @ factors[t]
        total = np.zeros((d, d))
        for t in range(tasks):
            total += ((base + factors[t] @ factors[t].T) @ x[t] - y[t]) @ x[t].T
        base -= RATE * total / (count * tasks)
    return base


def retrain(x: Array, y: Array, steps: int, rank: int, generator: np.random.Generator) -> Array:
    """SR's steps on A, with the frozen adapters that the published learner carries."""
    tasks, d, count = x.shape
    base, factors = np.zeros((d, d)), START * generator.standard_normal((tasks, d, rank))
    for _ in range(steps):
        total = np.zeros((d, d))
        for t in range(tasks):
            total += ((base + factors[t] @ factors[t].T) @ x[t] - y[t]) @ x[t].T
        base -= RATE * total / (count * tasks)
    return base


def fine_tune(x: Array, y: Array, steps: int, rank: int, generator: np.random.Generator) -> Array:
    """Fine-tuning steps on the test task."""
    d, count = x.shape
    left, right = START * generator.standard_normal((2, d, rank))
    base = np.zeros((d, d))
    for _ in range(steps):
        slope = ((base + left @ right.T) @ x - y) @ x.T / count
        left, right = left - TUNE_RATE * slope @ right, right - TUNE_RATE * slope.T @ left
    return np.asarray(left @ right.T)


def timed(work: Callable[[int], object], steps: int, fraction: float) -> float:
    """Seconds that `steps` steps would take, from a fraction of them (at least 3), after one untimed."""
    work(1)
    few = max(3, round(steps * fraction))
    start = time.perf_counter()
    work(few)
    return (time.perf_counter() - start) * steps / few


def published_way(names: list[str], fraction: float, generator: np.random.Generator) -> dict[str, float]:
    """Seconds of each stage for all sweeps; a setting that two sweeps share is retrained once."""
    total = {"retraining": 0.0, "fine-tuning": 0.0}
    retrained: set[LinearSetting] = set()
    for name in names:
        for _, setting, rank in settings(name):
            if setting not in retrained and name != "n":
                retrained.add(setting)
                x, y = samples(generator, setting, setting.T, setting.N)
                for stage in (meta_train, retrain):
                    seconds = timed(
                        partial(stage, x, y, rank=setting.k, generator=generator), OUTER_STEPS, fraction
                    )
                    total["retraining"] += RUNS * seconds
            x, y = samples(generator, setting, 1, setting.n)
            seconds = timed(
                partial(fine_tune, x[0], y[0], rank=rank, generator=generator), STEPS[name], fraction
            )
            total["fine-tuning"] += RUNS * len(METHODS) * seconds
    return total


def main() -> int:
    """Time both ways and report the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument(
        "--fraction", type=float, default=0.003, help="of the published way's steps that is timed"
    )
    parser.add_argument("--check", action="store_true", help=f"exit 1 below {BAR:g} times")
    options = parser.parse_args()
    if not 0 < options.fraction <= 1:
        parser.error(f"--fraction must lie in (0, 1], got {options.fraction}")
    names = [name for name in SWEEPS if name != "rank"]
    start = time.perf_counter()
    linear_sweeps(names, "paper")
    ours = time.perf_counter() - start
    published = published_way(names, options.fraction, np.random.default_rng(0))
    theirs = sum(published.values())
    row = {
        "workload": "five linear sweeps, paper protocol, 5 runs, both methods, retraining and fine-tuning",
        "against": "all N residuals in every step, one run after another (NumPy)",
        "ratio": theirs / ours,
        "bar": BAR,
        "passed": theirs / ours >= BAR,
        "seconds_ours": ours,
        "seconds_published_way": theirs,
        "seconds_by_stage": published,
        "fraction_timed": options.fraction,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }
    print(
        f"ours {ours:.1f} s, published way {theirs:.0f} s (from {options.fraction:.1%} of its steps): "
        f"{theirs / ours:.0f} x"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"rows": [row], "environment": environment()}, indent=2) + "\n")
    return 1 if options.check and not row["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())

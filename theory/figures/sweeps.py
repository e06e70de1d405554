"""The five sweeps of P3's linear figures and the sweep over the test rank, as data.

Two protocols. `paper` follows the published code, its faults included: noise of standard deviation sigma^2,
an SR learner that carries frozen random adapters, 3000 outer steps however far they get. `corrected` has
noise sigma, a plain SR learner, exact minima for both methods, and fine-tuning run until it is within 1 % of
its exact end point.
Source: P3 (arXiv 2410.22264), section 5, and the code jacob-block/peft-ml.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from theory.figures.rows import EXACT, Row
from theory.models.dynamics import fine_tune, meta_train, retrain
from theory.models.problems import Array, LinearSetting, Statistics, Truth, observed
from theory.models.solvers import (
    input_loss,
    meta_least_squares,
    pooled_least_squares,
    reduced_rank_regression,
)

Protocol = Literal["corrected", "paper"]
RUNS = 5
SWEEPS: dict[str, tuple[int, ...]] = {
    "d": (5, 10, 20),
    "T": (2, 3, 5),
    "N": (100, 1000, 10000),
    "n": (100, 1000, 10000),
    "k": (1, 2, 3),
    "rank": (1, 2, 3, 4),
}
STEPS = {"d": 1400, "T": 10000, "N": 1000, "n": 1000, "k": 10000, "rank": 10000}  # as published
METHODS = ("sr+lora", "lora-ml")
OUTER_STEPS, START, RATE, TUNE_RATE = 3000, 0.1, 0.03, 0.005
TOLERANCE, LONGEST = 0.01, 64  # corrected: to within 1 % of the exact end, in at most so many times the steps
WIDTH, TASKS, RANK, TEST_RANK, SAMPLES = 20, 5, 3, 9, 10000  # what the nested draw covers


def settings(sweep: str) -> list[tuple[int, LinearSetting, int]]:
    """The sweep's `(value, setting, test rank)` triples; at T = 2 both methods get rank 3k."""
    base = LinearSetting()
    if sweep == "rank":
        return [(value, base, value) for value in SWEEPS[sweep]]
    made = [(value, replace(base, **{sweep: value})) for value in SWEEPS[sweep]]
    return [(value, setting, setting.test_rank) for value, setting in made]


class Draw:
    """One run's random numbers for all settings at once: each setting reads a corner and a prefix of them.

    Args:
        seed: of the figures.
        run: which draw.
        protocol: decides the noise's standard deviation, sigma or (paper) sigma^2.
    """

    def __init__(self, seed: int, run: int, protocol: Protocol) -> None:
        generator = np.random.default_rng([seed, run])
        base = generator.standard_normal((WIDTH, WIDTH))
        self.base = (base + base.T) / 2
        self.left = generator.standard_normal((TASKS + 1, WIDTH, RANK))  # the test task is the first
        self.factors = START * generator.standard_normal((TASKS, WIDTH, RANK))
        self.tune = START * generator.standard_normal((2, WIDTH, TEST_RANK))
        self.solver_seed = int(generator.integers(2**31))
        self.protocol = protocol
        x = generator.standard_normal((TASKS + 1, WIDTH, SAMPLES))
        noise = generator.standard_normal(x.shape)
        self.moments = {}
        for count in sorted({*SWEEPS["N"], *SWEEPS["n"], LinearSetting.N}):
            inputs, errors = x[..., :count], noise[..., :count]
            transposed = inputs.swapaxes(-1, -2)
            self.moments[count] = (inputs @ transposed, errors @ transposed, errors @ errors.swapaxes(-1, -2))

    def _observe(self, setting: LinearSetting, tasks: slice, count: int) -> Statistics:
        d = setting.d
        sigma = setting.sigma**2 if self.protocol == "paper" else setting.sigma
        xx, ex, ee = (part[tasks, :d, :d] for part in self.moments[count])
        left = self.left[tasks, :d, : setting.k]
        maps = Truth(self.base[:d, :d], left, left).maps
        return observed(maps, xx, sigma * ex, sigma**2 * ee, count)

    def retraining(self, setting: LinearSetting) -> Statistics:
        """Statistics of the T retraining tasks, `(T, d, d)`."""
        return self._observe(setting, slice(1, setting.T + 1), setting.N)

    def test(self, setting: LinearSetting) -> tuple[Statistics, Array]:
        """Statistics of the test task and its true map, `(d, d)`."""
        left = self.left[0, : setting.d, : setting.k]
        true = self.base[: setting.d, : setting.d] + left @ left.T
        return self._observe(setting, slice(0, 1), setting.n).task(0), true


Solved = dict[LinearSetting, dict[str, Array]]  # A by setting and method, `(runs, d, d)`


def solve(draws: list[Draw], needed: list[LinearSetting], protocol: Protocol) -> Solved:
    """Both methods' A for every setting: exact minima, or (paper) where the published descent ends."""
    if protocol == "corrected":
        return {setting: _solve_exactly(draws, setting) for setting in needed}
    solved: Solved = {}
    for d, k in sorted({(setting.d, setting.k) for setting in needed}):
        solved |= _descend(draws, [setting for setting in needed if (setting.d, setting.k) == (d, k)])
    return solved


def _solve_exactly(draws: list[Draw], setting: LinearSetting) -> dict[str, Array]:
    statistics = [draw.retraining(setting) for draw in draws]
    learned = [
        meta_least_squares(tasks, setting.k, np.random.default_rng(draw.solver_seed)).base
        for tasks, draw in zip(statistics, draws, strict=True)
    ]
    retrained = [pooled_least_squares(tasks) for tasks in statistics]
    return {"sr+lora": np.stack(retrained), "lora-ml": np.stack(learned)}


def _descend(draws: list[Draw], group: list[LinearSetting]) -> Solved:
    """The published descent of settings of one width and rank in one batch, fewer tasks padded with zeros."""
    d, k, most = group[0].d, group[0].k, max(setting.T for setting in group)

    def padded(array: Array) -> Array:
        return np.pad(array, ((0, most - len(array)), *(((0, 0),) * (array.ndim - 1))))

    pairs = [(setting, draw) for setting in group for draw in draws]
    tasks = Statistics(
        *(
            np.stack(parts)
            for parts in zip(*(map(padded, draw.retraining(one)) for one, draw in pairs), strict=True)
        )
    )
    factors = np.stack([padded(draw.factors[: one.T, :d, :k]) for one, draw in pairs])
    start = np.zeros((len(pairs), d, d))
    retrained = retrain(tasks, start, factors @ factors.swapaxes(-1, -2), OUTER_STEPS, RATE)
    learned = meta_train(tasks, start, factors, OUTER_STEPS)[0]
    runs = len(draws)
    return {
        setting: {
            "sr+lora": retrained[i * runs : (i + 1) * runs],
            "lora-ml": learned[i * runs : (i + 1) * runs],
        }
        for i, setting in enumerate(group)
    }


@dataclass
class Job:
    """One fine-tuning curve: what it starts from, and where it stands."""

    value: int
    method: str
    run: int
    rank: int
    base: Array
    task: Statistics
    true: Array
    left: Array
    right: Array


def run_sweep(sweep: str, draws: list[Draw], protocol: Protocol, solved: Solved) -> list[Row]:
    """All rows of one sweep: a curve and an exact end point for each value, method and run.

    Args:
        sweep: one of SWEEPS.
        draws: the runs.
        protocol: as published, or corrected.
        solved: A by setting, from `solve`; sweeps share the default setting.
    """
    jobs = []
    for value, setting, rank in settings(sweep):
        for run, draw in enumerate(draws):
            task, true = draw.test(setting)
            left, right = draw.tune[:, : setting.d, :rank]
            for method in METHODS:
                base = solved[retraining_part(setting)][method][run]
                jobs.append(Job(value, method, run, rank, base, task, true, left, right))
    rows = []
    for width in sorted({job.true.shape[-1] for job in jobs}):
        rows += _tune([job for job in jobs if job.true.shape[-1] == width], sweep, protocol)
    return rows


def retraining_part(setting: LinearSetting) -> LinearSetting:
    """The setting with n at its default: retraining does not see the test samples."""
    return replace(setting, n=LinearSetting.n)


def _tune(jobs: list[Job], sweep: str, protocol: Protocol) -> list[Row]:
    """Fine-tune jobs of one width together; corrected ones go on until each has come to its end."""
    rows, ends = [], []
    for job in jobs:
        error = job.true - job.base - reduced_rank_regression(job.base, job.task, job.rank)
        loss, population = float(input_loss(error, job.task)), float((error**2).sum())
        ends.append(loss)
        rows.append(Row(sweep, job.value, job.method, job.run, EXACT, loss, population))
    steps, done, left_over = STEPS[sweep], 0, list(range(len(jobs)))
    even, early = np.linspace(0, steps, 51, dtype=int), np.geomspace(1, steps, 15, dtype=int)
    record = sorted({*even.tolist(), *early.tolist()})
    while left_over:
        batch = [jobs[index] for index in left_over]
        losses, populations = _advance(batch, [stop - done for stop in record])
        for column, job in enumerate(batch):
            for stop, loss, population in zip(record, losses[:, column], populations[:, column], strict=True):
                if stop > done or stop == 0:
                    rows.append(
                        Row(sweep, job.value, job.method, job.run, stop, float(loss), float(population))
                    )
        done = record[-1]
        if protocol == "paper" or done >= LONGEST * steps:
            break
        left_over = [
            index
            for index, loss in zip(left_over, losses[-1], strict=True)
            if abs(loss / ends[index] - 1) > TOLERANCE
        ]
        record = np.linspace(done, 2 * done, 11, dtype=int).tolist()
    return rows


def _advance(batch: list[Job], record: list[int]) -> tuple[Array, Array]:
    """Move several jobs along; loss and population error at the recorded steps, `(steps, jobs)` each."""
    rank = max(job.rank for job in batch)

    def padded(name: str) -> Array:
        return np.stack([np.pad(getattr(job, name), ((0, 0), (0, rank - job.rank))) for job in batch])

    base, true = np.stack([job.base for job in batch]), np.stack([job.true for job in batch])
    task = Statistics(*(np.stack(parts) for parts in zip(*(job.task for job in batch), strict=True)))
    curve = fine_tune(base, task, padded("left"), padded("right"), record, TUNE_RATE)
    for index, job in enumerate(batch):
        job.left = curve.left[-1, index, :, : job.rank]
        job.right = curve.right[-1, index, :, : job.rank]
    error = true - base - curve.left @ curve.right.swapaxes(-1, -2)
    return input_loss(error, task), (error**2).sum((-2, -1))


def linear_sweeps(
    names: list[str], protocol: Protocol, seed: int = 0, runs: int = RUNS
) -> dict[str, list[Row]]:
    """The rows of the named sweeps, which share one nested draw a run.

    Raises:
        ValueError: an unknown sweep.
    """
    unknown = [name for name in names if name not in SWEEPS]
    if unknown:
        raise ValueError(f"unknown sweep {unknown[0]!r}: known are {', '.join(SWEEPS)}")
    draws = [Draw(seed, run, protocol) for run in range(runs)]
    needed = {retraining_part(setting) for name in names for _, setting, _ in settings(name)}
    solved = solve(draws, sorted(needed, key=str), protocol)
    return {name: run_sweep(name, draws, protocol, solved) for name in names}

"""Figures that the paper lacks, as data: rates, the T = 2 tie, meta-learners on SR's line, covariances, minima.

All from exact solvers; the rows have the columns of the sweeps and `step` is always `exact`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from theory.figures.rows import EXACT, Row
from theory.models.landscape import spurious_minimum
from theory.models.metalearners import METHODS, solution, spread_covariances
from theory.models.problems import Array, LinearSetting, Statistics, Truth, draw_truth, population, sample
from theory.models.solvers import (
    MetaObjective,
    descend,
    input_loss,
    meta_least_squares,
    pooled_least_squares,
    reduced_rank_regression,
)
from theory.models.tuning_error import retrained_base, true_base, tuned_errors

DEFAULT = LinearSetting()
STARTS = 0.1  # standard deviation of LoRA-ML's starts, as published
INNER_RATE, INNER_STEPS = 0.5, 5  # of Reptile, FOMAML, MAML; iMAML's proximal weight is the rate


def tuning_error(generator: np.random.Generator, draws: int = 200) -> Iterator[Row]:
    """Test error against n: from A* at rank k, and from SR's population A at rank k(T+1)."""
    one = DEFAULT
    for n in (20, 50, 100, 300, 1000, 3000):
        for method, base, rank in (
            ("sr+lora", retrained_base, one.retraining_rank),
            ("lora-ml", true_base, one.k),
        ):
            sizes = (one.d, one.k, one.T, n, one.sigma, rank)
            inputs, populations, _ = tuned_errors(generator, draws, base, *sizes)
            for run in range(draws):
                yield Row("test-error", n, method, run, EXACT, float(inputs[run]), float(populations[run]))


def retraining_error(generator: np.random.Generator, draws: int = 8) -> Iterator[Row]:
    """Error of A against N T, SR's from its own limit, LoRA-ML's from A*; `loss` sums over the N T inputs."""
    one = DEFAULT
    for run in range(draws):
        truth = draw_truth(generator, one.d, 16, one.k)
        for T, N in ((3, 200), (3, 1000), (3, 5000), (16, 200), (16, 1000), (16, 5000)):
            part = Truth(truth.base, truth.left[:T], truth.right[:T])
            tasks = sample(generator, part.maps, N, one.sigma)
            pooled = Statistics(tasks.xx.sum(0), tasks.yx.sum(0), tasks.yy.sum(0), tasks.samples.sum())
            learned = meta_least_squares(tasks, one.k, generator, restarts=2).base
            for method, error in (
                ("sr", pooled_least_squares(tasks) - part.maps.mean(0)),
                ("lora-ml", learned - truth.base),
            ):
                loss = float(input_loss(error, pooled))
                yield Row("retraining-error", N * T, method, run, EXACT, loss, float((error**2).sum()))


def solved(tasks: Statistics, k: int, generator: np.random.Generator) -> dict[str, Array]:
    """Both methods' exact A."""
    return {"sr+lora": pooled_least_squares(tasks), "lora-ml": meta_least_squares(tasks, k, generator).base}


def ends(
    sweep: str, base: Array, task: Statistics, true: Array, method: str, run: int, ranks: range
) -> Iterator[Row]:
    """Exact end points of fine-tuning at each test rank."""
    for rank in ranks:
        error = true - base - reduced_rank_regression(base, task, rank)
        yield Row(sweep, rank, method, run, EXACT, float(input_loss(error, task)), float((error**2).sum()))


def tie(generator: np.random.Generator, draws: int = 20) -> Iterator[Row]:
    """T = 2: both methods against the test rank; they meet at 3k = k(T+1)."""
    one = LinearSetting(T=2)
    for run in range(draws):
        truth = draw_truth(generator, one.d, one.T + 1, one.k)
        tasks = sample(generator, truth.maps[:-1], one.N, one.sigma)
        task, true = sample(generator, truth.maps[-1], one.n, one.sigma), truth.maps[-1]
        bases = solved(tasks, one.k, generator)
        for method, base in bases.items():
            yield from ends("tie", base, task, true, method, run, range(1, 7))


def meta_learners(generator: np.random.Generator, draws: int = 20) -> Iterator[Row]:
    """Initialisation-based methods at their finite-sample solutions, with SR and LoRA-ML, by test rank."""
    one = DEFAULT
    for run in range(draws):
        truth = draw_truth(generator, one.d, one.T + 1, one.k)
        tasks = sample(generator, truth.maps[:-1], one.N, one.sigma)
        task, true = sample(generator, truth.maps[-1], one.n, one.sigma), truth.maps[-1]
        bases = solved(tasks, one.k, generator)
        fitted = tasks.yx @ np.linalg.inv(tasks.xx)
        for method in METHODS:
            bases[method] = solution(method, fitted, tasks.xx / one.N, INNER_RATE, INNER_STEPS)
        for method, base in bases.items():
            yield from ends("meta-learners", base, task, true, method, run, range(1, 7))


def covariance(generator: np.random.Generator, draws: int = 50) -> Iterator[Row]:
    """Distance from SR's solution as the tasks' covariances spread; `loss` under the test task's."""
    one = DEFAULT
    for spread in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0):
        for run in range(draws):
            maps = draw_truth(generator, one.d, one.T, one.k).maps
            covariances = spread_covariances(generator, one.T + 1, one.d, spread)
            retrained = pooled_least_squares(population(maps, covariances[:-1]))
            test = population(retrained, covariances[-1])
            for method in METHODS:
                error = solution(method, maps, covariances[:-1], 0.3, INNER_STEPS) - retrained
                loss, distance = float(input_loss(error, test)), float((error**2).sum())
                yield Row("covariance", spread, method, run, EXACT, loss, distance)


def landscape(generator: np.random.Generator, draws: int = 200) -> Iterator[Row]:
    """Where descents of LoRA-ML end on three tasks that have a spurious minimum, and on two of them.

    `loss`: above the global minimum, relative to that of no updates; `population`: `||A - A*||_F^2`, relative to A*'s.
    The row `spurious` is the minimum that the search for such tasks found.
    """
    found = spurious_minimum(generator)
    if found is None:
        raise ArithmeticError("no spurious minimum was found; take another --seed")
    for T in (2, 3):
        objective = MetaObjective(population(found.maps[:T]), 1)
        reference = objective(np.zeros(objective.size))[0]
        for run in range(draws):
            end = descend(objective, STARTS * generator.standard_normal(objective.size))
            distance = ((end.base - found.base) ** 2).sum() / (found.base**2).sum()
            yield Row("landscape", T, "lora-ml", run, EXACT, float(end.excess / reference), float(distance))
    spurious = found.point
    fitted = spurious.factors @ spurious.factors.swapaxes(-1, -2)
    gap = (found.maps - fitted).mean(0) - found.base
    yield Row(
        "landscape", 3, "spurious", 0, EXACT, spurious.loss, float((gap**2).sum() / (found.base**2).sum())
    )


EXTRAS: dict[str, Callable[[np.random.Generator], Iterator[Row]]] = {
    "test-error": tuning_error,
    "retraining-error": retraining_error,
    "tie": tie,
    "meta-learners": meta_learners,
    "covariance": covariance,
    "landscape": landscape,
}


def extra(name: str, seed: int) -> list[Row]:
    """The rows of one extra figure; each has a generator of its own."""
    return list(EXTRAS[name](np.random.default_rng([seed, 1000 + list(EXTRAS).index(name)])))

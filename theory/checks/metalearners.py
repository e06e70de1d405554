"""Theorem 6: initialisation-based meta-learners have SR's solution (P3, arXiv 2410.22264)."""

from __future__ import annotations

import numpy as np

from theory.checks.check import BEYOND, Check, CheckFunction
from theory.models.metalearners import METHODS, solution, spread_covariances
from theory.models.problems import Array, draw_truth, population
from theory.models.solvers import pooled_least_squares


def random_rate(generator: np.random.Generator) -> float:
    """An inner rate in (0, 2) without 1; of each three in ten one lies within 1e-12 to 1e-3 of 0, of 1, of 2."""
    if generator.uniform() < 0.3:
        away = float(10.0 ** generator.uniform(-12, -3))
        return (away, 1 - away, 1 + away, 2 - away)[int(generator.integers(4))]
    return float(generator.uniform(0.01, 1.99))


def distances(
    generator: np.random.Generator,
    instances: int,
    spread: float,
    common: bool,
    rates: tuple[float, float] | None,
) -> Array:
    """`||A_method - A_SR|| / ||A_SR||` over random instances, `(instances, methods)`.

    Args:
        generator, instances: source and number.
        spread: of the covariances' eigenvalues, 0 for isotropic inputs.
        common: one covariance for all tasks, or one each.
        rates: range of the inner rate; None for (0, 2) without 1.
    """
    found = np.empty((instances, len(METHODS)))
    for index in range(instances):
        d, k, T = int(generator.integers(2, 21)), int(generator.integers(1, 3)), int(generator.integers(2, 9))
        maps = draw_truth(generator, d, T, k).maps
        covariances = spread_covariances(generator, 1 if common else T, d, spread)
        covariances = np.broadcast_to(covariances, maps.shape)
        rate = random_rate(generator) if rates is None else float(generator.uniform(*rates))
        steps = int(generator.integers(1, 11))
        retrained = pooled_least_squares(population(maps, covariances))
        for column, method in enumerate(METHODS):
            other = solution(method, maps, covariances, rate, steps)
            found[index, column] = np.linalg.norm(other - retrained) / np.linalg.norm(retrained)
    return found


def same_solution(generator: np.random.Generator, instances: int = 200, spread: float = 0.0) -> list[Check]:
    """Reptile, FOMAML, MAML and iMAML end where SR does, 0 < eta < 2, eta != 1, K = 1 to 10."""
    worst = distances(generator, instances, spread, common=False, rates=None).max(0)
    return [
        Check(6, f"{method} has SR's solution, isotropic x (relative)", instances, float(value), 1e-8)
        for method, value in zip(METHODS, worst, strict=True)
    ]


def engine_solution(generator: np.random.Generator, instances: int = 20, spread: float = 0.0) -> list[Check]:
    """The same through `metapeft.hypergradient` (Reptile, first order, unroll, CG with a proximal term)."""
    from theory.models.engine import engine_gradient

    worst = []
    for index in range(instances):
        method, d, T = (
            METHODS[index % len(METHODS)],
            int(generator.integers(2, 9)),
            int(generator.integers(2, 6)),
        )
        maps = draw_truth(generator, d, T, 1).maps
        covariances = spread_covariances(generator, T, d, spread)
        rate, steps = float(generator.uniform(0.05, 0.9)), int(generator.integers(1, 6))
        found = solution(method, maps, covariances, rate, steps, engine_gradient)
        retrained = pooled_least_squares(population(maps, covariances))
        worst.append(np.linalg.norm(found - retrained) / np.linalg.norm(retrained))
    return [
        Check(
            6,
            "the four of them through metapeft's engine have SR's solution (relative)",
            instances,
            float(np.max(worst)),
            1e-8,
        )
    ]


def common_covariance(
    generator: np.random.Generator, instances: int = 100, common: bool = True
) -> list[Check]:
    """A covariance that all tasks share leaves theorem 6 true: the matrices P_t agree and drop out."""
    # At higher rates some 1 - eta lambda is near 0, and K = 10 steps make the system too ill-conditioned.
    worst = distances(generator, instances, spread=0.5, common=common, rates=(0.05, 0.3)).max()
    statement = "theorem 6 holds under any common covariance of x (relative)"
    return [Check(BEYOND, statement, instances, float(worst), 1e-8)]


def task_covariances(
    generator: np.random.Generator, instances: int = 100, spread: float = 0.5
) -> list[Check]:
    """Covariances that differ between tasks break theorem 6: median distance from SR's solution."""
    median = np.median(distances(generator, instances, spread, common=False, rates=(0.05, 0.6)), axis=0)
    return [
        Check(
            BEYOND,
            f"{method} leaves SR's solution, covariances differ (eigenvalues e^-{spread} to e^{spread}): "
            "median",
            instances,
            float(value),
            1e-3,
            ">=",
        )
        for method, value in zip(METHODS, median, strict=True)
    ]


CHECKS: tuple[CheckFunction, ...] = (same_solution, engine_solution, common_covariance, task_covariances)

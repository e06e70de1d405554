"""Theorem 1: what standard retraining leaves for the test task (P3, arXiv 2410.22264)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from theory.checks.check import Check, CheckFunction
from theory.models.problems import Array, draw_truth, population
from theory.models.solvers import input_loss, pooled_least_squares, reduced_rank_regression


def full_rank(k: int, T: int, d: int) -> int:
    """Theorem 1's rank, `min(k(T+1), d)`."""
    return min(k * (T + 1), d)


def residuals(
    generator: np.random.Generator,
    instances: int,
    symmetric: bool = True,
    fits: bool = False,
    training: float = 1.0,
) -> Iterator[tuple[int, int, int, Array]]:
    """Random sizes (d to 60, k to 4, T to 8) and SR's test residual `W_{T+1} - A_SR`.

    Args:
        generator, instances: source and number.
        symmetric: kind of truth.
        fits: only sizes with `k(T+1) <= d`.
        training: scale of the training tasks' updates; 0 removes them.
    """
    made = 0
    while made < instances:
        d, k, T = int(generator.integers(2, 61)), int(generator.integers(1, 5)), int(generator.integers(1, 9))
        if k > d or (fits and k * (T + 1) > d):
            continue
        truth = draw_truth(generator, d, T + 1, k, symmetric)
        left = truth.left.copy()
        left[:-1] *= training
        maps = truth.base + left @ (left if symmetric else truth.right).swapaxes(-1, -2)
        yield d, k, T, maps[-1] - pooled_least_squares(population(maps[:-1]))
        made += 1


def rank(
    generator: np.random.Generator,
    instances: int = 200,
    symmetric: bool = True,
    claimed: Callable[[int, int, int], int] = full_rank,
) -> list[Check]:
    """The residual's rank is `claimed(k, T, d)`: the next singular value is 0, the last is not."""
    beyond, within = [], []
    for d, k, T, residual in residuals(generator, instances, symmetric):
        r = claimed(k, T, d)
        values = np.append(np.linalg.svd(residual, compute_uv=False), 0.0)
        beyond.append(values[min(r, d)] / values[0])
        within.append(values[r - 1] / values[0])
    number, kind = (1, "") if symmetric else (0, ", asymmetric truth")
    name = f"rank of SR's test residual is min(k(T+1), d){kind}"
    return [
        Check(number, f"{name}: sigma_(r+1) / sigma_1", instances, float(np.max(beyond)), 1e-13),
        Check(number, f"{name}: sigma_r / sigma_1", instances, float(np.min(within)), 1e-12, ">="),
    ]


def inertia(
    generator: np.random.Generator,
    instances: int = 100,
    claimed: Callable[[int, int], tuple[int, int]] = lambda k, T: (k, k * T),
) -> list[Check]:
    """The residual has k positive and kT negative eigenvalues where `k(T+1) <= d`."""
    wrong = 0
    for _, k, T, residual in residuals(generator, instances, fits=True):
        values = np.linalg.eigvalsh(residual)
        floor = 1e-10 * np.abs(values).max()
        wrong += (int((values > floor).sum()), int((values < -floor).sum())) != claimed(k, T)
    return [Check(1, "k positive, kT negative eigenvalues: instances that differ", instances, wrong, 0)]


def best_loss(generator: np.random.Generator, instances: int = 100, constant: float = 0.5) -> list[Check]:
    """The best rank-r loss, by the solver, is `constant * sum_{i>r} sigma_i^2` (Eckart-Young)."""
    worst = []
    for d, _, _, residual in residuals(generator, instances):
        values = np.linalg.svd(residual, compute_uv=False)
        task = population(residual)
        for r in {1, (d + 1) // 2, d}:
            update = reduced_rank_regression(np.zeros((d, d)), task, r)
            loss = 0.5 * float(input_loss(residual - update, task))
            worst.append(abs(loss - constant * (values[r:] ** 2).sum()) / (values**2).sum())
    statement = "best rank-r loss = 1/2 sum_(i>r) sigma_i^2, r = 1, d/2, d (relative)"
    return [Check(1, statement, instances, float(np.max(worst)), 1e-10)]


def semidefinite(generator: np.random.Generator, instances: int = 100, training: float = 1.0) -> list[Check]:
    """Where `k(T+1) <= d` no PSD adapter of any rank reaches 0: the nearest leaves the negative eigenvalues."""
    shares = []
    for *_, residual in residuals(generator, instances, fits=True, training=training):
        values = np.linalg.eigvalsh(residual)
        shares.append((np.minimum(values, 0) ** 2).sum() / (values**2).sum())
    statement = "no PSD adapter reaches 0, k(T+1) <= d: least share of the loss that stays"
    return [Check(1, statement, instances, float(np.min(shares)), 1e-6, ">=")]


CHECKS: tuple[CheckFunction, ...] = (rank, inertia, best_loss, semidefinite)

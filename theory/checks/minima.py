"""Theorems 2 and 3: LoRA-ML's zero-loss points, and when they are unique (P3, arXiv 2410.22264)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from theory.checks.check import Check, CheckFunction
from theory.models.landscape import restart_past
from theory.models.problems import Array, Truth, draw_truth, population
from theory.models.solvers import MetaObjective, MetaSolution

SIZES = ((5, 1), (8, 1), (10, 2), (12, 3), (16, 4), (30, 2), (60, 4))  # (d, k), 3k <= d in all of them


def solved(
    generator: np.random.Generator,
    instances: int,
    tasks: tuple[int, ...],
    extra_rank: int = 0,
    symmetric: bool = True,
) -> Iterator[tuple[int, int, int, Truth, MetaSolution]]:
    """Random truths (one task more than T) with LoRA-ML solved to zero loss on the first T tasks.

    Args:
        generator, instances: source and number.
        tasks: values of T, taken in turn.
        extra_rank: adapters of rank `k + extra_rank`.
        symmetric: truth and adapters.
    """
    for index in range(instances):
        d, k = SIZES[index % len(SIZES)]
        T = tasks[index % len(tasks)]
        truth = draw_truth(generator, d, T + 1, k, symmetric)
        objective = MetaObjective(population(truth.maps[:T]), k + extra_rank, symmetric)
        yield d, k, T, truth, restart_past(objective, generator)


def ranks(
    generator: np.random.Generator,
    instances: int = 90,
    tasks: tuple[int, ...] = (1, 2, 3, 5, 8),
    claimed: Callable[[int], tuple[int, int]] = lambda k: (2 * k, 3 * k),
) -> list[Check]:
    """At zero loss `rank(A - A*) <= 2k`, so the test task needs rank 3k at most, any T (theorem 2)."""
    excess, base_tail, test_tail = [], [], []
    for d, k, _, truth, found in solved(generator, instances, tasks):
        scale = np.linalg.norm(truth.maps[0], 2)
        excess.append(found.excess / scale**2)
        for_base, for_test = claimed(k)
        base_values = np.append(np.linalg.svd(found.base - truth.base, compute_uv=False), 0)
        test_values = np.append(np.linalg.svd(truth.maps[-1] - found.base, compute_uv=False), 0)
        base_tail.append(base_values[min(for_base, d)] / scale)
        test_tail.append(test_values[min(for_test, d)] / scale)
    return [
        Check(
            2,
            "LoRA-ML is solved to zero loss, T = 1 to 8 (relative)",
            instances,
            float(np.max(excess)),
            1e-14,
        ),
        Check(2, "rank(A - A*) <= 2k: sigma_(2k+1), relative", instances, float(np.max(base_tail)), 1e-6),
        Check(
            2, "rank 3k suffices at test: sigma_(3k+1), relative", instances, float(np.max(test_tail)), 1e-6
        ),
    ]


def unique(
    generator: np.random.Generator,
    instances: int = 90,
    tasks: tuple[int, ...] = (3, 4, 5, 8),
    extra_rank: int = 0,
    symmetric: bool = True,
) -> list[Check]:
    """For T >= 3 and 3k <= d zero loss means `A = A*` and `U_t V_t^T = R_t` (theorem 3)."""
    base, update = [], []
    for _, _, T, truth, found in solved(generator, instances, tasks, extra_rank, symmetric):
        base.append(_distance(found.base, truth.base))
        update.append(_distance(found.left @ found.right.swapaxes(-1, -2), truth.updates[:T]))
    kind = "symmetric" if symmetric else "asymmetric"
    return [
        Check(3, f"T >= 3: A = A*, {kind} (relative)", instances, float(np.max(base)), 1e-6),
        Check(
            3,
            f"T >= 3: the updates are the true ones, {kind} (relative)",
            instances,
            float(np.max(update)),
            1e-6,
        ),
    ]


def unique_asymmetric(generator: np.random.Generator, instances: int = 40) -> list[Check]:
    """Theorem 3 with asymmetric adapters and truth."""
    return unique(generator, instances, symmetric=False)


def _distance(found: Array, true: Array) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


CHECKS: tuple[CheckFunction, ...] = (ranks, unique, unique_asymmetric)

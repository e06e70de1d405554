"""Theorems 4 and 5: the loss surface at T = 2, and spurious minima at T = 3 (P3, arXiv 2410.22264)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from theory.checks.check import Check, CheckFunction
from theory.models.landscape import (
    family_offset,
    population_objective,
    restart_past,
    spurious_minimum,
    stationary_point,
    two_task_family,
)
from theory.models.problems import draw_truth


def family(
    generator: np.random.Generator, instances: int = 100, q: Callable[[float], float] = family_offset
) -> list[Check]:
    """Every point of the family fits both tasks; every minimum found is one of its points."""
    loss, away, excess = [], [], []
    for index in range(instances):
        d = int(generator.integers(2, 11))
        truth = draw_truth(generator, d, 2, 1)
        p = float(generator.exponential(2.0))
        shift = two_task_family(truth.left, p, q(p) if index % 2 else -q(p))
        # With A = A* - shift, task t is fitted exactly where R_t + shift is PSD of rank 1.
        values = np.linalg.eigvalsh(truth.updates + shift)
        loss.append(np.abs(values[:, :-1]).max() / np.abs(values).max())

        objective = population_objective(truth.maps, 1)
        found = restart_past(objective, generator)  # a single descent may run off along the family
        excess.append(found.excess / objective.scale**2)
        inverse = np.linalg.pinv(np.concatenate([truth.left[0], truth.left[1]], -1))
        gap = truth.base - found.base
        inner = inverse @ gap @ inverse.T
        p = max(float(inner[0, 0]), 0.0)
        nearest = two_task_family(truth.left, p, q(p) if inner[0, 1] > 0 else -q(p))
        away.append(np.linalg.norm(gap - nearest) / np.linalg.norm(truth.maps))
    return [
        Check(
            4,
            "T = 2, k = 1: each (p, q) of the family has zero loss (relative)",
            instances,
            float(np.max(loss)),
            1e-10,
        ),
        Check(
            4,
            "T = 2, k = 1: every minimum found lies on the family (relative)",
            instances,
            float(np.max(away)),
            1e-5,
        ),
        Check(
            4,
            "T = 2: descents, restarted, end at zero loss (relative)",
            instances,
            float(np.max(excess)),
            1e-14,
        ),
    ]


def saddles(generator: np.random.Generator, instances: int = 100, ceiling: float = -1e-6) -> list[Check]:
    """T = 2: each stationary point with loss above 0 has a direction of negative curvature, k = 1, 2, 3."""
    flattest: list[float] = []
    while (kept := len(flattest)) < instances:
        k = 1 + kept % 3
        objective = population_objective(draw_truth(generator, 2 * k + 2, 2, k).maps, k)
        point = stationary_point(objective, generator.standard_normal(objective.size))
        if point is None or point.loss < 1e-8:
            continue
        flattest.append(float(point.spectrum[0] / point.spectrum[-1]))
    statement = "T = 2: stationary points that are not global are strict saddles: lambda_min / lambda_max"
    return [Check(4, statement, instances, float(np.max(flattest)), ceiling)]


def spurious(generator: np.random.Generator, tasks: int = 3, attempts: int = 5000) -> list[Check]:
    """T = 3 has a minimum that is not global, with a positive definite Hessian; restarts get past it."""
    found = spurious_minimum(generator, T=tasks, attempts=attempts)
    name = "T = 3, d = 5, k = 1: a spurious minimum:"
    if found is None:
        return [Check(5, f"{name} found", attempts, 0.0, 1.0, ">=")]
    point = found.point
    ratio = float(point.spectrum[0] / point.spectrum[-1])
    detail = {"spectrum": point.spectrum.tolist(), "starts": [float(found.starts)]}
    return [
        Check(5, f"{name} its loss, relative to no updates", found.starts, point.loss, 1e-6, ">=", detail),
        Check(5, f"{name} lambda_min / lambda_max of its Hessian", found.starts, ratio, 1e-6, ">="),
        Check(5, f"{name} loss after restarts on the same tasks", 1, found.restarted.excess, 1e-12),
    ]


CHECKS: tuple[CheckFunction, ...] = (family, saddles, spurious)

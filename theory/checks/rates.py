"""Theorem 7: rates of the test error and of the retraining error (P3, arXiv 2410.22264)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from theory.checks.check import Check, CheckFunction
from theory.models.problems import Truth, draw_truth, sample
from theory.models.solvers import (
    meta_least_squares,
    pooled_least_squares,
)
from theory.models.tuning_error import parameters, retrained_base, true_base, tuned_errors


def floor(
    generator: np.random.Generator, draws: int = 1000, count: Callable[[int, int], float] = parameters
) -> list[Check]:
    """The mean error over the n inputs is `sigma^2 r(2d - r)`, r = k from A*, r = k(T+1) from SR's A."""
    found = []
    d, T, n, sigma = 10, 3, 1000, 0.1
    for name, base, k, rank in (
        ("A = A*, r = k = 1", true_base, 1, 1),
        ("A = A*, r = k = 2", true_base, 2, 2),
        ("A = A_SR, r = k(T+1) = 4", retrained_base, 1, 4),
    ):
        errors = tuned_errors(generator, draws, base, d, k, T, n, sigma, rank)[0]
        expected = sigma**2 * count(rank, d)
        statement = f"mean test error over n inputs = sigma^2 r(2d-r), {name} (relative)"
        found.append(Check(7, statement, draws, abs(float(errors.mean()) / expected - 1), 0.05))
    return found


def population_form(generator: np.random.Generator, draws: int = 1000, n: int = 2000) -> list[Check]:
    """`n ||.||_F^2` goes to the same floor only at n >> d."""
    d, sigma, expected = 10, 0.1, parameters(1, 10)
    excess = {}
    for count in (100, n):
        errors = tuned_errors(generator, draws, true_base, d, 1, 3, count, sigma, 1)[1]
        excess[count] = float(count * errors.mean()) / (sigma**2 * expected) - 1
    statement = "population form n||.||^2 / (sigma^2 k(2d-k)) - 1"
    return [
        Check(7, f"{statement} at n = {n}", draws, abs(excess[n]), 0.05),
        Check(7, f"{statement} at n = 100 is above the floor", draws, excess[100], 0.03, ">="),
    ]


def retraining_plateau(generator: np.random.Generator, draws: int = 200, rank: int = 1) -> list[Check]:
    """SR's mean population loss at rank k is Eckart-Young's value, however many samples: n = 1000."""
    _, populations, tails = tuned_errors(generator, draws, retrained_base, 10, 1, 3, 1000, 0.1, rank)
    value = abs(float(populations.mean() / tails.mean()) - 1)
    return [Check(7, "SR's mean population loss at rank k is Eckart-Young's, n = 1000", draws, value, 0.01)]


def exponent(sizes: list[int], errors: list[float]) -> float:
    """Slope of `log error` on `log size`, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def retraining_constant(truth: Truth, sigma: float) -> float:
    """N T times the expected squared error of SR's A about its limit, for Gaussian x and large N.

    `(d + 1) mean_t ||R_t - mean R||_F^2 + sigma^2 d^2`: the tasks' differences act as noise too, since
    `E (x x^T - I)^2 = (d + 1) I`.
    """
    d = truth.base.shape[-1]
    apart = truth.updates - truth.updates.mean(0)
    return float((d + 1) * (apart**2).sum() / len(apart) + sigma**2 * d**2)


def retraining_rate(
    generator: np.random.Generator, draws: int = 20, claimed: float = -1.0, factor: float = 1.0
) -> list[Check]:
    """The error of A falls as 1/(N T): SR's by its constant, LoRA-ML's by its exponents in N and in T.

    One truth a draw serves all sizes; the exponents of the draws are averaged, because truths differ in
    scale.

    Args:
        generator, draws: source and number.
        claimed: exponent of LoRA-ML's error.
        factor: on SR's constant, 1 being right.
    """
    d, k, sigma = 8, 1, 0.1
    found, ratios = [], []
    for sweep, sizes in (("N", [500, 1000, 2000, 4000, 8000]), ("T", [4, 8, 16])):
        slopes = []
        for _ in range(draws):
            truth = draw_truth(generator, d, max(sizes) if sweep == "T" else 3, k)
            errors = []
            for size in sizes:
                N, T = (size, 3) if sweep == "N" else (1000, size)
                part = Truth(truth.base, truth.left[:T], truth.right[:T])
                tasks = sample(generator, part.maps, N, sigma)
                retrained = pooled_least_squares(tasks) - part.maps.mean(0)
                ratios.append(float((retrained**2).sum()) * N * T / retraining_constant(part, sigma))
                learned = meta_least_squares(tasks, k, generator, restarts=1).base - part.base
                errors.append(float((learned**2).sum()))
            slopes.append(exponent(sizes, errors))
        slope = float(np.mean(slopes))
        statement = f"LoRA-ML: error of A falls as 1/{sweep}: exponent {slope:.2f}, distance from {claimed:g}"
        found.append(Check(7, statement, draws * len(sizes), abs(slope - claimed), 0.15))
    statement = "SR: error of A = ((d+1) mean_t ||R_t - mean R||^2 + sigma^2 d^2) / (N T) (relative)"
    value = abs(float(np.mean(ratios)) / factor - 1)
    return [Check(7, statement, len(ratios), value, 0.15), *found]


CHECKS: tuple[CheckFunction, ...] = (floor, population_form, retraining_plateau, retraining_rate)

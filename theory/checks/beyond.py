"""Beyond the paper: asymmetric truth, rank selection and generated factors in the linear model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from theory.checks import minima, residual
from theory.checks.check import BEYOND, Check, CheckFunction
from theory.models.generation import best_seed, combine, feature, linear_generator, terms
from theory.models.problems import Statistics, draw_truth, population, sample
from theory.models.selection import search, singular_rank, threshold_rank, validation_loss
from theory.models.solvers import input_loss


def asymmetric_residual(
    generator: np.random.Generator,
    instances: int = 100,
    claimed: Callable[[int, int, int], int] = residual.full_rank,
) -> list[Check]:
    """Theorem 1's rank with `R_t = U_t V_t^T`."""
    return residual.rank(generator, instances, symmetric=False, claimed=claimed)


def asymmetric_pair(generator: np.random.Generator, instances: int = 40, tasks: int = 2) -> list[Check]:
    """T = 2 with asymmetric truth: zero loss leaves A away from A*, as in the symmetric case."""
    distance = np.array(
        [
            np.linalg.norm(found.base - truth.base) / np.linalg.norm(truth.base)
            for *_, truth, found in minima.solved(generator, instances, (tasks,), symmetric=False)
        ]
    )
    statement = "T = 2, asymmetric truth: A is not unique: median distance from A* at zero loss (relative)"
    return [Check(BEYOND, statement, instances, float(np.median(distance)), 1e-2, ">=")]


def planted(
    generator: np.random.Generator, layers: int, d: int, highest: int, samples: int, sigma: float
) -> tuple[NDArray[np.int64], Statistics, Statistics]:
    """Layers with planted ranks 1..highest: the ranks, and statistics of a 70/30 split of the samples."""
    ranks = generator.integers(1, highest + 1, layers)
    kept = np.arange(highest) < ranks[:, None]
    left, right = generator.standard_normal((2, layers, d, highest))
    update = (left * kept[:, None, :]) @ right.swapaxes(-1, -2)
    share = int(0.7 * samples)
    return ranks, sample(generator, update, share, sigma), sample(generator, update, samples - share, sigma)


def of(split: Statistics, layer: int) -> Statistics:
    """One layer's statistics."""
    return Statistics(*(part[layer] for part in split))


def indifferent_selection(
    generator: np.random.Generator, instances: int = 20, terms: int = 8, dropped: int = 0
) -> list[Check]:
    """Exact bilevel selection is indifferent: every alpha > 0 has the same validation loss at its optimum.

    Args:
        generator, instances: source and number of layers.
        terms: rank-1 terms.
        dropped: terms whose alpha is 0 in every second draw, which does change the loss.
    """
    _, train, validation = planted(generator, 3 * instances, terms, 6, 1000, 0.5)
    # A singular value of the optimum near 0 makes a saddle beside it, which a solver cannot tell from a minimum.
    least = np.linalg.svd(train.yx @ np.linalg.inv(train.xx), compute_uv=False)[:, -1]
    worst = []
    for layer in np.flatnonzero(least > 0.01)[:instances]:
        losses = []
        for draw in range(3):
            alpha = 0.5 / terms + 0.5 * generator.dirichlet(np.ones(terms))
            alpha[: dropped * (draw % 2)] = 0
            losses.append(validation_loss(generator, of(train, layer), of(validation, layer), alpha))
        worst.append(np.ptp(losses) / np.mean(losses))
    statement = (
        "AutoLoRA: validation loss at the exact lower optimum does not depend on alpha (relative range)"
    )
    return [Check(BEYOND, statement, len(worst), float(np.max(worst)), 1e-6)]


def selected_ranks(generator: np.random.Generator, layers: int = 60, margin: float = 1.1) -> list[Check]:
    """Planted ranks: AutoLoRA's threshold against the singular values of the very update that it trained."""
    samples, sigma = 1000, 0.5
    ranks, train, validation = planted(generator, layers, 10, 6, samples, sigma)
    found = search(generator, train, validation)
    share = int(train.samples[0])
    rules = {
        "alpha >= 1/k": threshold_rank(found.alpha),
        "shuffled ranks": generator.permutation(ranks),
        "singular values": singular_rank(found.update, share, sigma, margin),
    }
    exact = {name: float((rule == ranks).mean()) for name, rule in rules.items()}
    near = {name: [float((np.abs(rule - ranks) <= 1).mean())] for name, rule in rules.items()}
    lead = exact["singular values"] - max(exact["alpha >= 1/k"], exact["shuffled ranks"])
    share_of = ", ".join(f"{name} {value:.0%}" for name, value in exact.items())
    return [
        Check(
            BEYOND,
            "planted ranks found exactly by singular values",
            layers,
            exact["singular values"],
            0.9,
            ">=",
            {f"within 1, {name}": value for name, value in near.items()},
        ),
        Check(BEYOND, f"their lead over the other rules ({share_of})", layers, lead, 0.2, ">="),
    ]


def seed_floor(generator: np.random.Generator, draws: int = 20_000, factor: float = 1.0) -> list[Check]:
    """A seed alone, terms given, costs `sigma^2 R` over the n inputs; free factors `sigma^2 R(2d-R)`."""
    d, R, n, sigma, block = 10, 4, 200, 0.1, 500
    shared, losses = terms(*generator.standard_normal((2, d, R))), []
    for _ in range(0, draws, block):
        truth = combine(generator.standard_normal((block, R)), shared)
        task = sample(generator, truth, n, sigma)
        error = truth - combine(best_seed(shared, np.zeros((d, d)), task), shared)
        losses.append(float(input_loss(error, task).mean()))
    value = abs(float(np.mean(losses)) / (factor * sigma**2 * R) - 1)
    return [
        Check(
            BEYOND, "MetaLoRA: a seed of R terms costs sigma^2 R over n inputs (relative)", draws, value, 0.05
        )
    ]


def generated(
    generator: np.random.Generator, instances: int = 50, fewer: int = 0, others: int = 3
) -> list[Check]:
    """With shared terms a linear generator of `R - fewer` tasks gives a new task's seed exactly.

    Args:
        generator, instances: source and number.
        fewer: tasks that are missing.
        others: tasks of the second statement beside the new one; all updates are `(10, 10)` of rank 1, independent.
    """
    d, R = 10, 4
    worst, outside = [], []
    base = np.zeros((d, d))
    for _ in range(instances):
        shared = terms(*generator.standard_normal((2, d, R)))
        seeds = generator.standard_normal((R - fewer + 1, R))
        tasks = population(combine(seeds, shared))
        features = feature(base, tasks)
        mapping = linear_generator(features[:-1], seeds[:-1])
        worst.append(np.abs(features[-1] @ mapping - seeds[-1]).max() / np.abs(seeds).max())

        truth = draw_truth(generator, d, others + 1, 1)
        own = terms(truth.left[:-1, :, 0].T, truth.left[:-1, :, 0].T)
        update = truth.updates[-1]
        rest = update - combine(best_seed(own, base, population(update)), own)
        outside.append((rest**2).sum() / (update**2).sum())
    return [
        Check(
            BEYOND,
            "MetaLoRA: shared terms, R tasks: the generated seed is the true one",
            instances,
            float(np.max(worst)),
            1e-8,
        ),
        Check(
            BEYOND,
            "MetaLoRA: independent U_t: least share that no seed reaches",
            instances,
            float(np.min(outside)),
            0.05,
            ">=",
        ),
    ]


CHECKS: tuple[CheckFunction, ...] = (
    asymmetric_residual,
    asymmetric_pair,
    indifferent_selection,
    selected_ranks,
    seed_floor,
    generated,
)

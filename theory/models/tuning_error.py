"""What fine-tuning on a new task reaches: its exact error, from the truth's A or from what SR finds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from theory.models.problems import Array, Truth, draw_truth, sample
from theory.models.solvers import input_loss, reduced_rank_regression

CHUNK = 100  # draws whose samples are held at once


def parameters(r: int, d: int) -> float:
    """Degrees of freedom of a d x d matrix of rank r, `r(2d - r)`."""
    return float(r * (2 * d - r))


def tuned_errors(
    generator: np.random.Generator,
    draws: int,
    base: Callable[[Truth], Array],
    d: int,
    k: int,
    T: int,
    n: int,
    sigma: float,
    rank: int,
) -> tuple[Array, Array, Array]:
    """Exact test-time error of many draws: sum over the n inputs, population form, and Eckart-Young's part.

    Args:
        generator, draws: source and number.
        base: A from the truth, batched.
        d, k, T, n, sigma: sizes and noise.
        rank: of the test update.

    Returns:
        Three arrays `(draws,)`.
    """
    inputs, populations, tails = [], [], []
    for begin in range(0, draws, CHUNK):
        truth = draw_truth(generator, d, T + 1, k, shape=(min(CHUNK, draws - begin),))
        start, true = base(truth), truth.maps[..., -1, :, :]
        task = sample(generator, true, n, sigma)
        error = true - start - reduced_rank_regression(start, task, rank)
        inputs.append(input_loss(error, task))
        populations.append((error**2).sum((-2, -1)))
        values = np.linalg.svd(true - start, compute_uv=False)
        tails.append((values[..., rank:] ** 2).sum(-1))
    return np.concatenate(inputs), np.concatenate(populations), np.concatenate(tails)


def true_base(truth: Truth) -> Array:
    """LoRA-ML's population solution at T >= 3."""
    return truth.base


def retrained_base(truth: Truth) -> Array:
    """SR's population solution, `A* + mean_t R_t`."""
    return np.asarray(truth.maps[..., :-1, :, :].mean(-3))

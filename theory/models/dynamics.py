"""The published gradient dynamics, on sufficient statistics, for all runs and settings together.

The official code multiplies all N samples in each of its tens of thousands of steps. A squared loss needs
`S = X X^T` and `C = Y X^T` only: with `G = (A + U V^T) S - C` the gradients are `G V` and `G^T U`, and since
U and V are thin, no step builds a d x d product except the one on A. Every function takes leading batch
axes; a problem of fewer tasks or of lower rank is padded with zeros, which gradient descent leaves at zero.
Source: P3 (arXiv 2410.22264), section 5 and its code.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from theory.models.problems import Array, Statistics, require_positive


class Curve(NamedTuple):
    """Recorded fine-tuning: `steps` `(R,)` and the factors there, `(R, ..., d, r)`."""

    steps: NDArray[np.int64]
    left: Array
    right: Array


def retrain(statistics: Statistics, start: Array, frozen: Array, steps: int, rate: float) -> Array:
    """Gradient descent of standard retraining, `A <- A - rate/T sum_t ((A + F_t) S_t - C_t)/N_t`.

    Args:
        statistics: of the retraining tasks, `(..., T, d, d)`, padded tasks all zero.
        start: first A, `(..., d, d)`.
        frozen: `F_t`, updates that are never trained, `(..., T, d, d)`: zero, but for the paper's learner.
        steps, rate: of the descent.

    Returns:
        `A`, `(..., d, d)`.

    Example:
        >>> from theory.models.problems import population
        >>> tasks = population(np.stack([np.eye(2), 3 * np.eye(2)]))
        >>> float(retrain(tasks, np.zeros((2, 2)), np.zeros((2, 2, 2)), steps=2000, rate=0.1)[0, 0].round(9))
        2.0
    """
    require_positive("steps", steps)
    weight = _task_weight(statistics)
    moment = (statistics.xx * weight).sum(-3)
    target = ((statistics.yx - frozen @ statistics.xx) * weight).sum(-3)
    base = start.copy()
    for _ in range(steps):
        base -= rate * (base @ moment - target)
    return base


def meta_train(
    statistics: Statistics,
    base: Array,
    factors: Array,
    steps: int,
    inner_steps: int = 10,
    inner_rate: float = 0.003,
    rate: float = 0.03,
) -> tuple[Array, Array]:
    """Gradient descent of LoRA-ML: `inner_steps` on every `U_t`, gradient `(G_t + G_t^T) U_t / N`, one on A.

    Args:
        statistics: of the retraining tasks, `(..., T, d, d)`, padded tasks all zero.
        base: first A, `(..., d, d)`.
        factors: first U, `(..., T, d, k)`, padded columns zero.
        steps: outer steps.
        inner_steps, inner_rate: of the descent on U.
        rate: of the descent on A, whose gradient is `sum_t G_t / (N T)`.

    Returns:
        `A` `(..., d, d)` and `U` `(..., T, d, k)`.
    """
    require_positive("steps", steps)
    d = base.shape[-1]
    weight = _task_weight(statistics)
    count = np.maximum(statistics.samples, 1)[..., None, None]
    moments, targets = statistics.xx / count, statistics.yx / count
    moment, target = (statistics.xx * weight).sum(-3), (statistics.yx * weight).sum(-3)
    weighted = statistics.xx * weight
    base, factors = base.copy(), factors.copy()
    # rate [S_t; P_t + P_t^T], P_t = A S_t - C_t: both products of an inner step are one thin multiplication.
    moments, targets = inner_rate * moments, inner_rate * targets
    stacked = np.concatenate([moments, moments], -2)
    transposed = factors.swapaxes(-1, -2)  # a view, which follows the factors
    for _ in range(steps):
        slope = base[..., None, :, :] @ moments - targets
        np.add(slope, slope.swapaxes(-1, -2), out=stacked[..., d:, :])
        for _ in range(inner_steps):
            both = stacked @ factors
            through = both[..., :d, :]
            move = factors @ (transposed @ through)
            move += through @ (transposed @ factors)
            move += both[..., d:, :]
            factors -= move
        thin = transposed @ weighted
        base -= rate * (base @ moment - target + (factors @ thin).sum(-3))
    return base, factors


def fine_tune(
    base: Array, statistics: Statistics, left: Array, right: Array, record: list[int], rate: float
) -> Curve:
    """Gradient descent on a test update `U V^T`, A fixed: `U -= rate G V / n`, `V -= rate G^T U / n`.

    Args:
        base: A, `(..., d, d)`.
        statistics: of the test task, `(..., d, d)`.
        left, right: first U and V, `(..., d, r)`, padded columns zero in both.
        record: steps whose factors are kept, rising; the last one ends the descent.
        rate: of the descent.

    Returns:
        The recorded factors.

    Raises:
        ValueError: steps that do not rise, or start below 0.
    """
    if not record or record[0] < 0 or any(b <= a for a, b in itertools.pairwise(record)):
        raise ValueError(f"record must be rising step numbers from 0 on, got {record[:5]}")
    d = base.shape[-1]
    count = statistics.samples[..., None, None]
    moment = statistics.xx / count
    slope = base @ moment - statistics.yx / count
    # With Z = [U; V] one thin product gives [P V; P^T U; S V], P = A S - C; what G adds to P V and P^T U is
    # U (V^T S V) and S V (U^T U), again one product each for the two Gram matrices and for the sum.
    linear = np.zeros((*base.shape[:-2], 3 * d, 2 * d))
    linear[..., :d, d:] = slope
    linear[..., d : 2 * d, :d] = slope.swapaxes(-1, -2)
    linear[..., 2 * d :, d:] = moment
    factors = np.stack([left, right], -3)
    stacked = factors.reshape(*factors.shape[:-3], 2 * d, factors.shape[-1])  # a view: both change in place
    turned = factors.swapaxes(-1, -2)
    through = np.empty_like(factors)
    kept = np.empty((len(record), *factors.shape))
    step = 0
    for index, stop in enumerate(record):
        for _ in range(stop - step):
            product = linear @ stacked
            through[..., 0, :, :] = factors[..., 0, :, :]
            through[..., 1, :, :] = product[..., 2 * d :, :]
            gradient = through @ (turned @ through)[..., ::-1, :, :]
            gradient += product[..., : 2 * d, :].reshape(factors.shape)
            gradient *= rate
            factors -= gradient
        step = stop
        kept[index] = factors
    return Curve(np.array(record), kept[..., 0, :, :], kept[..., 1, :, :])


def _task_weight(statistics: Statistics) -> Array:
    """`1/(N_t T)` for each task, `(..., T, 1, 1)`, T counting the tasks that are not padding."""
    tasks = np.maximum((statistics.samples > 0).sum(-1), 1)[..., None]
    return np.asarray((1 / (np.maximum(statistics.samples, 1) * tasks))[..., None, None])

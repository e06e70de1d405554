"""Exact solvers of the linear model: pooled least squares, reduced-rank regression, LoRA-ML.

All of them read sufficient statistics only, and take leading batch axes where a closed form exists.
Source: P3 (arXiv 2410.22264), sections 3 and 5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from theory.models.problems import Array, Statistics, require_positive, require_rank, square_root


def pooled_least_squares(statistics: Statistics) -> Array:
    """Standard retraining, `A = (sum_t Y_t X_t^T)(sum_t X_t X_t^T)^+`, the minimum of least norm.

    Args:
        statistics: of the retraining tasks, `(..., T, d, d)`.

    Returns:
        `A`, `(..., d, d)`.

    Example:
        >>> from theory.models.problems import population
        >>> pooled_least_squares(population(np.stack([np.eye(2), 3 * np.eye(2)])))
        array([[2., 0.],
               [0., 2.]])
    """
    weight = 1 / statistics.samples[..., None, None]
    moment, target = (statistics.xx * weight).sum(-3), (statistics.yx * weight).sum(-3)
    return np.asarray(target @ symmetric_inverse(moment))


def symmetric_inverse(matrix: Array) -> Array:
    """Pseudo-inverse of a positive semi-definite `(..., d, d)`."""
    root = square_root(matrix, inverse=True)
    return root @ root


def truncate(matrix: Array, rank: int) -> Array:
    """The best approximation of rank `rank` in Frobenius norm (Eckart-Young), `(..., d, d)`."""
    require_rank("rank", rank, matrix.shape[-1])
    left, values, right = np.linalg.svd(matrix)
    return np.asarray((left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :])


def reduced_rank_regression(base: Array, statistics: Statistics, rank: int) -> Array:
    """The best update of rank `rank` on a task's samples, `argmin_D ||Y - (A + D) X||^2`.

    `M = (Y - A X) X^T S^{-1/2}`, `S = X X^T`, `D = [M]_r S^{-1/2}` with `[.]_r` the truncated SVD.

    Args:
        base: `A`, `(..., d, d)`, kept fixed.
        statistics: of the task, `(..., d, d)`.
        rank: of the update, 1..d.

    Returns:
        `D`, `(..., d, d)`; the one of least norm where S is singular.

    Raises:
        ValueError: a rank outside 1..d.

    Example:
        >>> from theory.models.problems import population
        >>> reduced_rank_regression(np.zeros((2, 2)), population(np.diag([3.0, 1.0])), rank=1).round(12)
        array([[3., 0.],
               [0., 0.]])
    """
    root = square_root(statistics.xx, inverse=True)
    return truncate((statistics.yx - base @ statistics.xx) @ root, rank) @ root


def input_loss(error: Array, statistics: Statistics) -> Array:
    """`sum_i ||E x_i||^2 = tr(E S E^T)` over the inputs of the statistics; the y axis of P3's figures."""
    return np.asarray(((error @ statistics.xx) * error).sum((-2, -1)))


class MetaSolution(NamedTuple):
    """A minimiser of LoRA-ML: `base` `(d, d)`, `left` and `right` `(T, d, k)`, the loss above the best
    unrestricted one, and the largest entry of the gradient relative to that of the data."""

    base: Array
    left: Array
    right: Array
    excess: float
    gradient: float


class MetaObjective:
    """LoRA-ML's loss with A eliminated, as a function of the factors of all tasks.

    `f(U, V) = min_A sum_t 1/2 tr((A + U_t V_t^T - W_t) S_t (.)^T) / N_t`, with `W_t` the task's
    least-squares map: the published loss less the part that no map can reach, so that nothing cancels as f
    goes to 0. With symmetric adapters `V = U`.

    Args:
        statistics: of the T tasks, `(T, d, d)`.
        rank: of each task's adapter.
        symmetric: `U U^T` as in the paper, or `U V^T`.

    Raises:
        ValueError: a rank outside 1..d.
    """

    def __init__(self, statistics: Statistics, rank: int, symmetric: bool = True) -> None:
        self.tasks, self.d = statistics.xx.shape[-3], statistics.xx.shape[-1]
        require_rank("rank", rank, self.d)
        self.rank, self.symmetric = rank, symmetric
        self.moments = statistics.xx / statistics.samples[:, None, None]
        self.maps = statistics.yx @ symmetric_inverse(statistics.xx)
        self.pooled = symmetric_inverse(self.moments.sum(0))
        self.scale = max(float(np.abs(self.maps @ self.moments).max()), 1e-300)
        self.size = self.tasks * self.d * rank * (1 if symmetric else 2)

    def split(self, flat: Array) -> tuple[Array, Array]:
        """The factors `U, V` `(T, d, k)` in a vector."""
        parts = flat.reshape(-1, self.tasks, self.d, self.rank)
        return parts[0], parts[-1]

    def base(self, updates: Array) -> Array:
        """The best A for given updates `(T, d, d)`."""
        return np.asarray(((self.maps - updates) @ self.moments).sum(0) @ self.pooled)

    def __call__(self, flat: Array) -> tuple[float, Array]:
        """Value and gradient; A is optimal, so its own derivative drops out."""
        left, right = self.split(flat)
        updates = left @ right.swapaxes(-1, -2)
        error = self.base(updates) + updates - self.maps
        slope = error @ self.moments
        value = 0.5 * float((slope * error).sum())
        if self.symmetric:
            return value, ((slope + slope.swapaxes(-1, -2)) @ left).ravel()
        return value, np.concatenate([(slope @ right).ravel(), (slope.swapaxes(-1, -2) @ left).ravel()])


def descend(objective: MetaObjective, start: Array, iterations: int = 5000) -> MetaSolution:
    """Minimise LoRA-ML's loss from one start by L-BFGS: a local minimum, not always global (theorem 5).

    Args:
        objective: the loss.
        start: `(objective.size,)`.
        iterations: at most so many.
    """
    # Scaled to an order of 1, because L-BFGS-B's own stopping tests are absolute.
    unit = objective.scale

    def scaled(flat: Array) -> tuple[float, Array]:
        value, gradient = objective(flat)
        return value / unit, gradient / unit

    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 30, "ftol": 0.0, "gtol": 1e-13}
    found = minimize(scaled, start, jac=True, method="L-BFGS-B", options=options)
    left, right = objective.split(found.x)
    value, gradient = objective(found.x)
    base = objective.base(left @ right.swapaxes(-1, -2))
    return MetaSolution(base, left, right, value, float(np.abs(gradient).max() / unit))


def meta_least_squares(
    statistics: Statistics,
    rank: int,
    generator: np.random.Generator,
    restarts: int = 5,
    symmetric: bool = True,
) -> MetaSolution:
    """LoRA-ML solved exactly: the best of several L-BFGS descents with A eliminated.

    `min_{A, U_t} sum_t 1/(2N) ||Y_t - (A + U_t U_t^T) X_t||^2` (P3, equation of LoRA-ML).

    Args:
        statistics: of the T tasks, `(T, d, d)`.
        rank: of each task's adapter.
        generator: of the starts, `N(0, 1)` scaled to the data.
        restarts: descents at most; it stops early at a loss of 0 (to rounding), which is a global minimum.
        symmetric: `U U^T`, as in the paper, or `U V^T`.

    Raises:
        ValueError: a rank outside 1..d, fewer than one restart.

    Example:
        >>> from theory.models.problems import draw_truth, population
        >>> truth = draw_truth(np.random.default_rng(0), d=6, tasks=3, k=1)
        >>> solution = meta_least_squares(population(truth.maps), 1, np.random.default_rng(1))
        >>> bool(np.abs(solution.base - truth.base).max() < 1e-6)
        True
    """
    require_positive("restarts", restarts)
    objective = MetaObjective(statistics, rank, symmetric)
    spread = np.sqrt(max(float(np.abs(objective.maps - objective.maps.mean(0)).mean()), 1e-12))
    best: MetaSolution | None = None
    for _ in range(restarts):
        found = descend(objective, spread * generator.standard_normal(objective.size))
        if best is None or found.excess < best.excess:
            best = found
        if best.excess < 1e-18 * objective.scale**2:
            break
    assert best is not None  # restarts >= 1
    return best


def alternate(
    statistics: Statistics, rank: int, start: Array, rounds: int, symmetric: bool = True
) -> tuple[Array, Array]:
    """LoRA-ML by alternating closed forms, best updates for A, best A for the updates; it never rises.

    Asymmetric adapters: reduced-rank regression, for any samples. Symmetric ones: the `rank` largest positive
    eigenvalues of `sym(W_t - A)`, which is exact only for isotropic statistics (the population).

    Args:
        statistics: of the T tasks, `(T, d, d)`.
        rank: of each task's adapter.
        start: first A, `(d, d)`.
        rounds: number of alternations.
        symmetric: `U U^T` or `U V^T`.

    Returns:
        `A` `(d, d)` and the loss above the best unrestricted one after each round, `(rounds,)`.

    Raises:
        ValueError: fewer than one round, symmetric adapters with statistics that are not isotropic.
    """
    require_positive("rounds", rounds)
    objective = MetaObjective(statistics, rank, symmetric)
    isotropic = objective.moments[:, :1, :1] * np.eye(objective.d)
    if symmetric and not np.allclose(objective.moments, isotropic, rtol=1e-10, atol=1e-12):
        raise ValueError(
            "symmetric=True needs isotropic statistics: only then are the best updates a closed form"
        )
    base, losses = start, np.empty(rounds)
    for index in range(rounds):
        if symmetric:
            gap = objective.maps - base
            values, vectors = np.linalg.eigh((gap + gap.swapaxes(-1, -2)) / 2)
            kept = np.maximum(values[:, None, -rank:], 0)
            updates = (vectors[..., -rank:] * kept) @ vectors[..., -rank:].swapaxes(-1, -2)
        else:
            updates = reduced_rank_regression(base[None], statistics, rank)
        base = objective.base(updates)
        error = base + updates - objective.maps
        losses[index] = 0.5 * float(((error @ objective.moments) * error).sum())
    return base, losses

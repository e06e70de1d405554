"""LoRA-ML's loss surface in the population: Hessians, saddles, the T = 2 family, spurious minima.

A is eliminated throughout: the loss is convex in A, so a point is a local minimum of the full problem
exactly when it is one of the reduced problem, and a negative direction of either is one of the other.
Source: P3 (arXiv 2410.22264), theorems 3 to 5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from metapeft.base.arguments import number
from theory.models.problems import Array, Statistics, draw_truth, population, require_positive
from theory.models.solvers import MetaObjective, MetaSolution, descend


def hessian(objective: MetaObjective, factors: Array) -> Array:
    """The Hessian of symmetric LoRA-ML with A eliminated, `(Tdk, Tdk)`, a product a column.

    With `D_t = dU_t U_t^T + U_t dU_t^T` and `E_t` the residual, the product is
    `sym(dG_t) U_t + sym(G_t) dU_t`, `G = E S`, `dG = (D + dA) S`, `sym(M) = M + M^T`.

    Args:
        objective: a symmetric one.
        factors: U, `(T, d, k)`.

    Raises:
        ValueError: an objective with asymmetric adapters.
    """
    if not objective.symmetric:
        raise ValueError("hessian is written for symmetric adapters: build the objective with symmetric=True")
    size = factors.size
    directions = np.eye(size).reshape(size, *factors.shape)
    transposed = factors.swapaxes(-1, -2)
    updates = factors @ transposed
    slope = (objective.base(updates) + updates - objective.maps) @ objective.moments
    moved = directions @ transposed
    moved = moved + moved.swapaxes(-1, -2)
    shift = -(moved @ objective.moments).sum(-3) @ objective.pooled
    change = (moved + shift[:, None]) @ objective.moments
    product = (change + change.swapaxes(-1, -2)) @ factors + (slope + slope.swapaxes(-1, -2)) @ directions
    return np.asarray(product.reshape(size, size))


class Point(NamedTuple):
    """A stationary point: factors, loss relative to that of zero updates, the Hessian's eigenvalues."""

    factors: Array
    loss: float
    spectrum: Array


def inspect(objective: MetaObjective, factors: Array) -> Point:
    """Loss, relative to zero updates, and Hessian spectrum at given factors `(T, d, k)`."""
    reference = objective(np.zeros(objective.size))[0]
    value = objective(factors.ravel())[0]
    return Point(
        factors, value / reference, np.asarray(np.linalg.eigvalsh(hessian(objective, factors)), float)
    )


def stationary_point(objective: MetaObjective, start: Array) -> Point | None:
    """The stationary point that solving `gradient = 0` finds from a start: any kind, saddles most of all.

    Returns:
        The point, or None where the search ended elsewhere (a minimum of the gradient's norm that is not 0).
    """
    found = least_squares(
        lambda flat: objective(flat)[1],
        start,
        jac=lambda flat: hessian(objective, objective.split(flat)[0]),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=300,
    )
    if np.abs(found.fun).max() > 1e-9 * objective.scale:
        return None
    return inspect(objective, objective.split(found.x)[0])


class Spurious(NamedTuple):
    """A spurious local minimum: the truth's maps and A*, the point, the starts it took, and what restarts reach."""

    maps: Array
    base: Array
    point: Point
    starts: int
    restarted: MetaSolution


def spurious_minimum(
    generator: np.random.Generator,
    d: int = 5,
    k: int = 1,
    T: int = 3,
    spread: float = 0.1,
    attempts: int = 5000,
) -> Spurious | None:
    """Search for a local minimum of LoRA-ML that is not global (P3, theorem 5), start after start.

    A start counts when its descent ends with zero gradient, a loss clearly above 0, and a Hessian whose
    smallest eigenvalue is positive (k = 1 has no continuous symmetry, so no eigenvalue needs to be 0).

    Args:
        generator: source of all randomness.
        d, k, T: sizes; k = 1 for a Hessian that can be positive definite.
        spread: standard deviation of the starts; at the paper's 0.1 about 1 start in 300 ends in such a minimum.
        attempts: starts at most, each on a truth of its own.

    Returns:
        The first one found, and the global minimum that restarts on the same tasks reach; None if there was
        none.
    """
    require_positive("attempts", attempts)
    for attempt in range(1, attempts + 1):
        truth = draw_truth(generator, d, T, k)
        maps = truth.maps
        objective = MetaObjective(population(maps), k)
        found = descend(objective, spread * generator.standard_normal(objective.size))
        if found.excess < 1e-8 * objective.scale**2 or found.gradient > 1e-6:
            continue
        point = inspect(objective, found.left)
        if point.loss > 1e-6 and point.spectrum[0] > 1e-6 * point.spectrum[-1]:
            return Spurious(maps, truth.base, point, attempt, restart_past(objective, generator))
    return None


def restart_past(
    objective: MetaObjective, generator: np.random.Generator, restarts: int = 100
) -> MetaSolution:
    """The best of several descents, stopping at the first with a loss of 0."""
    best = descend(objective, generator.standard_normal(objective.size))
    for _ in range(restarts):
        if best.excess < 1e-16 * objective.scale**2:
            break
        found = descend(objective, generator.standard_normal(objective.size))
        best = min(best, found, key=lambda solution: solution.excess)
    return best


def family_offset(p: float) -> float:
    """Theorem 4's `q = sqrt(p(p+1))`, which makes `diag(1, 0) + [[p, q], [q, p]]` PSD of rank 1."""
    number(p=p)
    return float(np.sqrt(p * (p + 1)))


def two_task_family(left: Array, p: float, q: float) -> Array:
    """`A* - A = M [[p, q], [q, p]] M^T`, `M = [U_1 U_2]`; T = 2, k = 1: minima at `q = +-sqrt(p(p+1))`.

    Args:
        left: `U_1, U_2`, `(2, d, 1)`.
        p, q: coordinates; `p = q = 0` is the truth itself.

    Returns:
        `A* - A`, `(d, d)`.

    Raises:
        ValueError: factors of other sizes.

    Example:
        >>> two_task_family(np.eye(2)[:, :, None], 1.0, family_offset(1.0)).round(3)
        array([[1.   , 1.414],
               [1.414, 1.   ]])
    """
    if left.shape[0] != 2 or left.shape[-1] != 1:
        raise ValueError(f"left must be (2, d, 1), the two factors of rank 1, got {left.shape}")
    span = np.concatenate([left[0], left[1]], -1)
    return np.asarray(span @ np.array([[p, q], [q, p]]) @ span.T)


def population_objective(maps: Array, rank: int) -> MetaObjective:
    """LoRA-ML's population loss of tasks with maps `(T, d, d)` under isotropic x."""
    statistics: Statistics = population(maps)
    return MetaObjective(statistics, rank)

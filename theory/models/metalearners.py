"""Initialisation-based meta-learners in the linear model, in closed form: Reptile, FOMAML, MAML, iMAML.

Each adapts all of A to a task by gradient descent (iMAML: by a proximal minimum). With `E_t = A - W_t` and
the task's covariance `Sigma_t`, K steps of rate eta give `E_t (I - eta Sigma_t)^K`, so every method's outer
gradient is `sum_t E_t P_t` with a matrix `P_t` that depends on `Sigma_t` alone, and its solution solves one
linear system, `A sum_t P_t = sum_t W_t P_t`. With `Sigma_t = I` (or any common covariance) the `P_t` agree
and drop out: the solution is the mean of the W_t, which is standard retraining's (P3, theorem 6). With
differing covariances it is not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from metapeft.base.arguments import number
from theory.models.problems import Array, require_positive

METHODS = ("reptile", "fomaml", "maml", "imaml")


def outer_gradient(
    method: str, base: Array, maps: Array, covariances: Array, rate: float, steps: int
) -> Array:
    """The outer gradient at A, `sum_t (A - W_t) P_t`.

    With `S = I - eta Sigma_t`, `P_t` is `S^K Sigma_t` for FOMAML, `S^K Sigma_t S^K` for MAML and
    `eta Sigma_t (I + S + ... + S^(K-1))` for Reptile, whose move `A - A_K` would lose digits as a difference.

    Args:
        method: one of METHODS.
        base: A, `(..., d, d)`.
        maps: `W_t`, `(..., T, d, d)`.
        covariances: `Sigma_t`, `(..., T, d, d)`.
        rate: eta of the inner descent; for iMAML the weight of the proximal term `lambda/2 ||phi - A||^2`.
        steps: K of the inner descent (iMAML solves its inner problem exactly and ignores it).

    Returns:
        `(..., d, d)`, summed over tasks; Reptile's is `sum_t (A - A_K)`.

    Raises:
        ValueError: an unknown method, fewer than one step, a rate that is not positive.
    """
    _check(method, rate, steps)
    error = base[..., None, :, :] - maps
    if method == "imaml":
        # (phi - W) Sigma + lambda (phi - A) = 0, and d phi / d A maps D to lambda D (Sigma + lambda)^-1.
        shrink = rate * np.linalg.inv(covariances + rate * np.eye(base.shape[-1]))
        return np.asarray((error @ shrink @ covariances @ shrink).sum(-3))
    step = np.eye(base.shape[-1]) - rate * covariances
    power, powers = np.broadcast_to(np.eye(base.shape[-1]), step.shape), np.zeros_like(step)
    for _ in range(steps):
        powers, power = powers + power, power @ step
    if method == "reptile":
        return np.asarray((error @ (rate * covariances @ powers)).sum(-3))
    after = error @ power @ covariances
    return np.asarray((after @ power if method == "maml" else after).sum(-3))


def solution(
    method: str,
    maps: Array,
    covariances: Array,
    rate: float,
    steps: int,
    gradient: Callable[[str, Array, Array, Array, float, int], Array] | None = None,
) -> Array:
    """The stationary point of the method, from its outer gradient alone, which is affine in A.

    Args:
        method, maps, covariances, rate, steps: as in `outer_gradient`.
        gradient: what computes the outer gradient; None for `outer_gradient`.

    Returns:
        `A`, `(..., d, d)`.

    Raises:
        ValueError: as `outer_gradient`; also where the gradient is 0 for every A (all tasks are fitted
            exactly, as with unit covariance at eta = 1), so that any A is stationary.

    Example:
        >>> maps, unit = np.stack([np.eye(2), 3 * np.eye(2)]), np.stack([np.eye(2)] * 2)
        >>> solution("maml", maps, unit, rate=0.5, steps=3)
        array([[2., 0.],
               [0., 2.]])
    """
    unit = np.broadcast_to(np.eye(maps.shape[-1]), maps[..., 0, :, :].shape)
    slope = outer_gradient if gradient is None else gradient
    offset = slope(method, np.zeros_like(unit), maps, covariances, rate, steps)
    zero = np.zeros_like(maps)
    weight = slope(method, unit, zero, covariances, rate, steps)
    scale = np.abs(weight).max((-2, -1), keepdims=True)
    if np.any(scale == 0):
        raise ValueError(
            f"{method} with rate {rate} fits every task exactly whatever A is: its outer gradient is 0 "
            "everywhere; choose a rate other than 1"
        )
    return np.asarray(-(offset / scale) @ np.linalg.inv(weight / scale))


def spread_covariances(generator: np.random.Generator, tasks: int, d: int, spread: float) -> Array:
    """Random covariances `Q diag(exp(spread * u)) Q^T`, u uniform in [-1, 1], Q a rotation.

    Args:
        generator: source of all randomness.
        tasks, d: how many, and their size.
        spread: 0 gives the identity; eigenvalues lie in `exp(-spread) .. exp(spread)`.

    Raises:
        ValueError: a negative spread, a size below 1.
    """
    require_positive("tasks", tasks)
    require_positive("d", d)
    number(spread=spread)
    if spread == 0:
        return np.broadcast_to(np.eye(d), (tasks, d, d))
    rotation = np.linalg.qr(generator.standard_normal((tasks, d, d)))[0]
    values = np.exp(spread * generator.uniform(-1, 1, (tasks, 1, d)))
    return np.asarray((rotation * values) @ rotation.swapaxes(-1, -2))


def _check(method: str, rate: float, steps: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    number(rate=rate, above=True)
    require_positive("steps", steps)

"""The linear model of provable meta-learning: settings, truths, samples and their sufficient statistics.

Source: Block, Srinivasan, Collins, Mokhtari, Shakkottai, "Provable Meta-Learning with Low-Rank Adaptations",
NeurIPS 2025, arXiv 2410.22264 (here: P3).

Task `t` draws `y = W_t x + e` with `W_t = A* + U_t V_t^T`, `x ~ N(0, Sigma)`, `e ~ N(0, sigma^2 I)`. In the
paper `V_t = U_t` and `Sigma = I`. Tasks `1..T` are for retraining, the last one is the test task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metapeft.base.arguments import number, plain, whole

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LinearSetting:
    """Sizes of one linear experiment; the defaults are those of P3's figures.

    Args:
        d: width of x and of y.
        T: number of retraining tasks.
        N: samples of each retraining task.
        n: samples of the test task.
        k: rank of each task's update.
        sigma: standard deviation of the noise.

    Raises:
        ValueError: a size below 1, a rank above d, a noise that is negative or not finite.

    Example:
        >>> LinearSetting(d=10, T=3, k=3).caveats()
        ['k(T+1) = 12 > d = 10: the test residual of SR has rank d, not k(T+1)']
    """

    d: int = 10
    T: int = 3
    N: int = 5000
    n: int = 100
    k: int = 1
    sigma: float = 0.1

    def __post_init__(self) -> None:
        for name in ("d", "T", "N", "n", "k"):
            require_positive(name, getattr(self, name))
        require_rank("k", self.k, self.d)
        require_noise(self.sigma)

    @property
    def test_rank(self) -> int:
        """The rank that LoRA-ML needs at test: k at T >= 3, 3k at T <= 2 (theorems 2 and 3)."""
        return min(self.k if self.T >= 3 else 3 * self.k, self.d)

    @property
    def retraining_rank(self) -> int:
        """The rank that standard retraining needs at test, `min(k(T+1), d)` (theorem 1)."""
        return min(self.k * (self.T + 1), self.d)

    def caveats(self) -> list[str]:
        """Conditions of the theorems that this setting does not meet, in words."""
        found = []
        if self.k * (self.T + 1) > self.d:
            found.append(
                f"k(T+1) = {self.k * (self.T + 1)} > d = {self.d}: the test residual of SR has rank d, not "
                "k(T+1)"
            )
        if self.T >= 3 and 3 * self.k > self.d:
            found.append(f"3k = {3 * self.k} > d = {self.d}: theorem 3 does not promise a unique minimum")
        if self.T == 1:
            found.append("T = 1: one task leaves A undetermined, every U_1 fits it")
        if self.T == 2:
            found.append("T = 2: LoRA-ML's minimum is not unique, both methods are given rank 3k")
        if self.n < self.d:
            found.append(f"n = {self.n} < d = {self.d}: the test samples do not determine the update")
        if self.d > self.N:
            found.append(f"N = {self.N} < d = {self.d}: a task's samples do not determine its map")
        if self.sigma == 0:
            found.append("sigma = 0: without noise the floor sigma^2 r(2d-r) is 0")
        return found


class Truth(NamedTuple):
    """The true maps: `base` `(..., d, d)`, and the updates' factors `(..., tasks, d, k)`."""

    base: Array
    left: Array
    right: Array

    @property
    def updates(self) -> Array:
        """`R_t = U_t V_t^T`, `(..., tasks, d, d)`."""
        return self.left @ self.right.swapaxes(-1, -2)

    @property
    def maps(self) -> Array:
        """`W_t = A* + R_t`, `(..., tasks, d, d)`."""
        return self.base[..., None, :, :] + self.updates


class Statistics(NamedTuple):
    """All that a squared loss knows of its samples, each `(..., d, d)`; `samples` is their number.

    `xx = X X^T`, `yx = Y X^T`, `yy = Y Y^T`. The population is `xx = Sigma`, `yx = W Sigma`, `samples = 1`.
    """

    xx: Array
    yx: Array
    yy: Array
    samples: Array

    def task(self, index: int | slice) -> Statistics:
        """The statistics of one task, or of a range of tasks, along the axis before the matrices."""
        xx, yx, yy = (part[..., index, :, :] for part in self[:3])
        return Statistics(xx, yx, yy, np.asarray(self.samples[..., index]))


def draw_truth(
    generator: np.random.Generator,
    d: int,
    tasks: int,
    k: int,
    symmetric: bool = True,
    shape: tuple[int, ...] = (),
) -> Truth:
    """Draw `A* = (G + G^T)/2` (or G) and `tasks` updates of rank k, entries N(0, 1) (P3, section 5).

    Args:
        generator: source of all randomness.
        d, tasks, k: width, number of tasks (the test task included), rank of each update.
        symmetric: symmetric truth `R_t = U_t U_t^T`, as in the paper, or `R_t = U_t V_t^T`.
        shape: leading axes, one truth an entry.

    Raises:
        ValueError: a size below 1 or a rank above d.

    Example:
        >>> truth = draw_truth(np.random.default_rng(0), d=4, tasks=3, k=1)
        >>> truth.maps.shape
        (3, 4, 4)
    """
    for name, value in (("d", d), ("tasks", tasks), ("k", k)):
        require_positive(name, value)
    require_rank("k", k, d)
    base = generator.standard_normal((*shape, d, d))
    left = generator.standard_normal((*shape, tasks, d, k))
    if symmetric:
        return Truth((base + base.swapaxes(-1, -2)) / 2, left, left)
    return Truth(base, left, generator.standard_normal((*shape, tasks, d, k)))


def population(maps: Array, covariance: Array | None = None) -> Statistics:
    """Statistics of infinitely many noise-free samples, a sample: `(Sigma, W Sigma, W Sigma W^T)`.

    Args:
        maps: `W`, `(..., d, d)`.
        covariance: `Sigma`, broadcast against maps; the identity if None.

    Example:
        >>> float(population(2 * np.eye(3)).yx[0, 0])
        2.0
    """
    d = maps.shape[-1]
    sigma = np.broadcast_to(np.eye(d) if covariance is None else covariance, maps.shape)
    yx = maps @ sigma
    return Statistics(np.array(sigma), yx, yx @ maps.swapaxes(-1, -2), np.ones(maps.shape[:-2]))


def sample(
    generator: np.random.Generator, maps: Array, count: int, sigma: float, covariance: Array | None = None
) -> Statistics:
    """Statistics of `count` samples `y = W x + e` of every map, drawn and reduced at once.

    Args:
        generator: source of all randomness.
        maps: `W`, `(..., d, d)`.
        count: samples of each map.
        sigma: standard deviation of the noise.
        covariance: of x, `(..., d, d)`, symmetric and positive semi-definite; the identity if None.

    Raises:
        ValueError: fewer than one sample, negative noise, a covariance that is none.

    Example:
        >>> statistics = sample(np.random.default_rng(0), np.eye(3), count=1000, sigma=0.0)
        >>> bool(np.allclose(statistics.xx, statistics.yx))
        True
    """
    require_positive("count", count)
    require_noise(sigma)
    d = maps.shape[-1]
    x = generator.standard_normal((*maps.shape[:-2], d, count))
    if covariance is not None:
        x = square_root(covariance) @ x
    noise = sigma * generator.standard_normal(x.shape)
    xx = x @ x.swapaxes(-1, -2)
    ex, ee = noise @ x.swapaxes(-1, -2), noise @ noise.swapaxes(-1, -2)
    return observed(maps, xx, ex, ee, count)


def observed(maps: Array, xx: Array, ex: Array, ee: Array, count: float) -> Statistics:
    """Statistics of `Y = W X + E` from `X X^T`, `E X^T` and `E E^T`; samples need not be kept to change W."""
    yx = maps @ xx + ex
    cross = maps @ ex.swapaxes(-1, -2)
    yy = maps @ xx @ maps.swapaxes(-1, -2) + cross + cross.swapaxes(-1, -2) + ee
    return Statistics(xx, yx, yy, np.full(yx.shape[:-2], float(count)))


def square_root(matrix: Array, inverse: bool = False) -> Array:
    """The symmetric square root of a positive semi-definite `(..., d, d)`, or its pseudo-inverse.

    Raises:
        ValueError: the matrix is not symmetric, or has an eigenvalue clearly below 0.
    """
    if not np.allclose(matrix, matrix.swapaxes(-1, -2), rtol=1e-10, atol=1e-12):
        raise ValueError("covariance must be symmetric; pass (C + C.T) / 2 if it is so up to rounding")
    values, vectors = np.linalg.eigh(matrix)
    largest = np.maximum(values[..., -1:], 0)
    floor = largest * matrix.shape[-1] * 1e-14
    if np.any(values < -floor - 1e-300):
        raise ValueError(f"covariance must have no negative eigenvalue, got {float(values.min()):.3g}")
    if inverse:
        safe = np.where(values > floor, values, 1.0)
        roots = np.where(values > floor, safe**-0.5, 0.0)
    else:
        roots = np.sqrt(np.maximum(values, 0))
    return np.asarray((vectors * roots[..., None, :]) @ vectors.swapaxes(-1, -2))


def require_positive(name: str, value: int) -> None:
    """Refuse a size that is no whole number of at least 1."""
    whole(**{name: plain(value)})


def require_rank(name: str, rank: int, d: int) -> None:
    """Refuse a rank outside 1..d."""
    whole(1, d, more="the width of the map", **{name: plain(rank)})


def require_noise(sigma: float) -> None:
    """Refuse a standard deviation that is negative or not finite."""
    number(sigma=sigma)

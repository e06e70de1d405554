"""Generated factors (MetaLoRA's CP format) in the linear model, where the best seed is a closed form.

A generated update is `L diag(c) Q^T`: R rank-1 terms that all tasks share, and a seed c for each task, made
from the task's features by a mapping net. With the terms given, the update is linear in c, so the best seed
is a linear regression:

- where the tasks' updates do lie in the terms' span, test error is `sigma^2 R` over the n inputs, against
  LoRA's `sigma^2 k(2d - k)`; and a *linear* mapping net on the feature `mean_i (y_i - W0 x_i) x_i^T` is the
  exact generator;
- where they do not (P3's independent factors), what lies outside the span stays, whatever the generator.

Sources: MetaLoRA (Wang, Zhao, arXiv 2504.00460), CP format; P3 (arXiv 2410.22264) for the model.
"""

from __future__ import annotations

import numpy as np

from theory.models.problems import Array, Statistics


def terms(left: Array, right: Array) -> Array:
    """The R rank-1 terms `l_j q_j^T` of factors `(d, R)`, `(R, d, d)`."""
    return np.asarray(np.einsum("ij,kj->jik", left, right))


def combine(seed: Array, shared: Array) -> Array:
    """`sum_j c_j l_j q_j^T` for seeds `(..., R)` and terms `(R, d, d)`, `(..., d, d)`.

    Example:
        >>> combine(np.array([2.0]), np.eye(2)[None])
        array([[2., 0.],
               [0., 2.]])
    """
    return np.asarray(np.tensordot(seed, shared, 1))


def best_seed(shared: Array, base: Array, statistics: Statistics) -> Array:
    """The seed that minimises `||Y - (A + sum_j c_j l_j q_j^T) X||^2`, a regression in R unknowns.

    Args:
        shared: terms, `(R, d, d)`.
        base: A, `(..., d, d)`.
        statistics: of the task, `(..., d, d)`.

    Returns:
        c, `(..., R)`, the one of least norm where the terms depend on one another.
    """
    through = shared @ statistics.xx[..., None, :, :]
    gram = np.einsum("...rij,sij->...rs", through, shared)
    target = np.einsum("rij,...ij->...r", shared, statistics.yx - base @ statistics.xx)
    return np.asarray((np.linalg.pinv(gram, hermitian=True) @ target[..., None])[..., 0])


def feature(base: Array, statistics: Statistics) -> Array:
    """A task's feature, the support set's mean of `(y - A x) x^T` as a vector, `(..., d*d)`."""
    moment = (statistics.yx - base @ statistics.xx) / statistics.samples[..., None, None]
    return moment.reshape(*moment.shape[:-2], -1)


def linear_generator(features: Array, seeds: Array) -> Array:
    """The linear mapping net that least squares finds from training tasks, `(features, R)`; of least norm.

    Args:
        features: `(tasks, F)`.
        seeds: the tasks' best seeds, `(tasks, R)`.
    """
    return np.asarray(np.linalg.pinv(features) @ seeds)

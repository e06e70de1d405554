"""The linear model as the toolkit sees it: an `nn.Linear` without bias, a squared loss, episodes, a `Learner`.

Inputs are made such that their second moment is a task's covariance exactly, so a finite support set has the
population loss. `F.mse_loss` averages over the d outputs, so a Learner's loss is `2/d` times
`1/2 ||(A - W_t) Sigma^{1/2}||^2`: rates of the theory are multiplied by d/2, its proximal weights by 2/d.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import metapeft as mp
from metapeft.episodes.episode import EpisodeBatch
from metapeft.hypergradients import CG
from metapeft.learner.learner import Learner
from theory.models.problems import Array, Statistics, square_root

PROXIMAL_STEPS = 150  # iMAML's inner descent, which has to converge; its rate is 1 / (largest eigenvalue)


def backbone(base: Array) -> nn.Linear:
    """`x -> A x` in float64."""
    d = base.shape[-1]
    module = nn.Linear(d, d, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.array(base)))
    return module


def episodes(maps: Array, covariances: Array) -> EpisodeBatch:
    """Noise-free tasks `y = W_t x` of d support and d query inputs, both of second moment `Sigma_t` exactly.

    Args:
        maps: `W_t`, `(T, d, d)`.
        covariances: `Sigma_t`, `(T, d, d)`.

    Example:
        >>> batch = episodes(np.stack([2 * np.eye(3)]), np.stack([np.eye(3)]))
        >>> x = batch.query_x[0].numpy()
        >>> bool(np.allclose(x.T @ x / 3, np.eye(3))), bool(np.allclose(batch.query_y[0].numpy(), 2 * x))
        (True, True)
    """
    d = maps.shape[-1]
    support = np.sqrt(d) * square_root(covariances)  # symmetric, so its rows are inputs
    turn = np.linalg.qr(np.vander(np.linspace(-1, 1, d)))[0]  # other queries, the same second moment
    tensors = (torch.from_numpy(np.ascontiguousarray(x)) for x in _pairs(maps, support, turn @ support))
    return EpisodeBatch(*tensors)


def _pairs(maps: Array, *inputs: Array) -> list[Array]:
    return [value for x in inputs for value in (x, x @ maps.swapaxes(-1, -2))]


def sampled(x: Array, y: Array) -> EpisodeBatch:
    """Tasks of given samples, `x` and `y` of shape `(T, n, d)`; the query set is the support set."""
    tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in (x, y)]
    return EpisodeBatch(*tensors, *tensors)


def statistics(batch: EpisodeBatch) -> Statistics:
    """The sufficient statistics of the support sets, for the exact solvers."""
    x, y = batch.support_x.numpy(), batch.support_y.numpy()
    count = np.full(x.shape[:-2], float(x.shape[-2]))
    return Statistics(_moment(x, x), _moment(y, x), _moment(y, y), count)


def _moment(a: Array, b: Array) -> Array:
    return np.asarray(a.swapaxes(-1, -2) @ b)


def learner(method: str, base: Array, covariances: Array, rate: float, steps: int) -> Learner:
    """A recipe of `mp.methods` on the linear model.

    Args:
        method: `reptile`, `fomaml`, `maml` or `imaml`.
        base: A, `(d, d)`, where the outer variable stands.
        covariances: `(T, d, d)`, for the rate of iMAML's inner descent.
        rate: of the inner descent in the theory's scale; for iMAML its proximal weight lambda.
        steps: of the inner descent; iMAML takes as many as it needs.

    Example:
        >>> learner("fomaml", np.eye(2), np.stack([np.eye(2)]), rate=0.5, steps=3).method
        'first-order'
    """
    half = base.shape[-1] / 2
    options: dict[str, Any] = {"inner": mp.inner.SGD(steps, half * rate)}
    if method == "reptile":
        options["inner_data"] = "support"  # both sets have one second moment here
    if method == "imaml":
        largest = float(np.linalg.norm(covariances, 2, (-2, -1)).max())
        solver = mp.inner.SGD(PROXIMAL_STEPS, half / (largest + rate), proximal=rate / half)
        options = {"inner": solver, "hypergradient": CG(iterations=50)}
    recipe = getattr(mp.methods, method)
    made: Learner = recipe(backbone(base), norm="running", loss=F.mse_loss, **options)
    return made


def learner_gradient(
    method: str, base: Array, maps: Array, covariances: Array, rate: float, steps: int
) -> Array:
    """The outer gradient at A by `Learner.hypergradient`, summed over tasks, in the scale of `metalearners`.

    Args: as `theory.models.metalearners.outer_gradient` has them.

    Example:
        >>> maps, unit = np.stack([np.eye(2), 3 * np.eye(2)]), np.stack([np.eye(2)] * 2)
        >>> found = learner_gradient("maml", np.zeros((2, 2)), maps, unit, rate=0.5, steps=1)
        >>> bool(np.allclose(found, -np.eye(2)))
        True
    """
    made = learner(method, base, covariances, rate, steps)
    found = made.hypergradient(episodes(maps, covariances)).grads["weights.weight"].numpy()
    scale = 1.0 if method == "reptile" else base.shape[-1] / 2
    return np.asarray(scale * len(maps) * found)

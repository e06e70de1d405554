"""Rank selection (AutoLoRA) in the linear model, where the right rank is known.

One layer, `y = (W0 + R) x + e` with a planted update R of rank k, is fitted by `sum_j alpha_j u_j v_j^T`,
`alpha = softmax(logits)`. Two facts the network experiments cannot show:

- The lower-level optimum does not depend on alpha: any alpha > 0 is absorbed by the factors, so the exact
  bilevel gradient of the logits is 0 and every alpha is optimal. What one unrolled step reads is how fast a
  term is moving.
- The singular values of the trained update do carry the rank: those above the noise edge are the planted ones.

Source: AutoLoRA (Zhang, Qiang, Somayajula, Xie, NAACL 2024, arXiv 2403.09113), equations of the search step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from theory.models.problems import Array, Statistics, require_noise, require_positive, require_rank


class Search(NamedTuple):
    """A finished search: `alpha` `(layers, terms)` and the trained updates `(layers, d, d)`."""

    alpha: Array
    update: Array


def validation_loss(
    generator: np.random.Generator, train: Statistics, validation: Statistics, alpha: Array
) -> float:
    """Validation loss at the lower level's optimum for a given alpha, found by L-BFGS on the factors.

    `L_val(D*(alpha), alpha)`, `D* = argmin_{u, v} ||Y - sum_j alpha_j u_j v_j^T X||^2`, for one layer.

    Args:
        generator: of the three starts, N(0, 1); the lowest end counts.
        train, validation: statistics of the residual `y - W0 x`, `(d, d)`.
        alpha: `(terms,)`, at least 0.

    Returns:
        The mean squared error a sample.

    Raises:
        ValueError: a negative alpha.
    """
    if not np.all(alpha >= 0):
        raise ValueError(f"alpha must be at least 0 in every term, got {float(np.min(alpha)):.3g}")
    d, terms = train.xx.shape[-1], alpha.shape[-1]
    moment, target = train.xx / train.samples, train.yx / train.samples

    def objective(flat: Array) -> tuple[float, Array]:
        left, right = flat.reshape(2, d, terms)
        update = (left * alpha) @ right.T
        through = update @ moment
        slope = through - target
        value = 0.5 * float((through * update).sum()) - float((update * target).sum())
        return value, np.stack([(slope @ right) * alpha, (slope.T @ left) * alpha]).ravel()

    options = {"maxiter": 20000, "maxfun": 40000, "maxcor": 30, "ftol": 0.0, "gtol": 1e-10}
    ends = [  # one of many descents stops at a saddle
        minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        for start in generator.standard_normal((3, 2 * d * terms))
    ]
    left, right = min(ends, key=lambda end: float(end.fun)).x.reshape(2, d, terms)
    error = (left * alpha) @ right.T
    loss = np.trace(error @ validation.xx @ error.T - 2 * error @ validation.yx.T + validation.yy)
    return float(loss / validation.samples)


def search(
    generator: np.random.Generator,
    train: Statistics,
    validation: Statistics,
    terms: int = 8,
    steps: int = 1500,
    rate: float = 0.01,
) -> Search:
    """AutoLoRA's search, all layers at once: a step on the factors, one on the logits.

    The logits' gradient is that of one unrolled step,
    `d L_val(D - rate grad L_train(D, alpha), alpha) / d logits`.

    Args:
        generator: of the factors' start, N(0, 0.1^2).
        train, validation: statistics of the residual `y - W0 x`, `(layers, d, d)`.
        terms: rank-1 terms at the start.
        steps: of the search; Adam on both levels, as published (upper betas 0.5, 0.999).
        rate: of both levels, and of the unrolled step.

    Raises:
        ValueError: fewer than one step, more terms than the width.
    """
    layers, d = train.xx.shape[0], train.xx.shape[-1]
    require_rank("terms", terms, d)
    require_positive("steps", steps)

    def moments(statistics: Statistics) -> tuple[torch.Tensor, torch.Tensor]:
        count = statistics.samples[:, None, None]
        return torch.from_numpy(statistics.xx / count), torch.from_numpy(statistics.yx / count)

    lower, upper = moments(train), moments(validation)

    def loss(
        left: torch.Tensor, right: torch.Tensor, logits: torch.Tensor, data: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        update = (left * logits.softmax(-1)[:, None, :]) @ right.mT
        return (0.5 * (update @ data[0]) * update - update * data[1]).sum()

    left, right = (
        torch.from_numpy(0.1 * generator.standard_normal((layers, d, terms))).requires_grad_()
        for _ in range(2)
    )
    logits = torch.zeros(layers, terms, dtype=torch.float64, requires_grad=True)
    factors = torch.optim.Adam([left, right], lr=rate)
    selection = torch.optim.Adam([logits], lr=rate, betas=(0.5, 0.999))
    for _ in range(steps):
        inner = torch.autograd.grad(loss(left, right, logits, lower), (left, right), create_graph=True)
        stepped = loss(left - rate * inner[0], right - rate * inner[1], logits, upper)
        (logits.grad,) = torch.autograd.grad(stepped, (logits,))
        left.grad, right.grad = (part.detach() for part in inner)
        factors.step()
        selection.step()
    alpha = logits.detach().softmax(-1)
    update = (left.detach() * alpha[:, None, :]) @ right.detach().mT
    return Search(alpha.numpy(), update.numpy())


def threshold_rank(alpha: Array) -> NDArray[np.int64]:
    """AutoLoRA's rule, the number of terms with `alpha_j >= 1/k`, `(layers,)`."""
    return np.asarray(np.count_nonzero(alpha >= 1 / alpha.shape[-1], axis=-1))


def singular_rank(update: Array, samples: int, sigma: float, margin: float = 1.1) -> NDArray[np.int64]:
    """Singular values above `margin` times the noise's edge, `sigma 2 sqrt(d) / sqrt(samples)`.

    The least-squares update is the true one plus noise of entries about `N(0, sigma^2 / samples)`, whose
    largest singular value is about `2 sqrt(d)` times their standard deviation.

    Args:
        update: `(layers, d, d)`.
        samples: that it was trained on.
        sigma: standard deviation of the noise.
        margin: above the edge.

    Returns:
        The number of them, `(layers,)`.

    Raises:
        ValueError: negative noise, fewer than one sample.
    """
    require_noise(sigma)
    require_positive("samples", samples)
    edge = sigma * 2 * np.sqrt(update.shape[-1]) / np.sqrt(samples)
    values = np.linalg.svd(update, compute_uv=False)
    return np.asarray(np.count_nonzero(values > margin * edge, axis=-1))

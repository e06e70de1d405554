"""Logistic regression with any number of classes, by Newton, all tasks at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metapeft.inner.argmin import argmin, newton
from metapeft.inner.closed_form import (
    Ridge,
    check_example_weights,
    positive_definite_solve,
    shifted_solve,
)


def softmax_regression(
    x: Tensor,
    y: Tensor,
    penalty: float | Tensor,
    weights: Tensor | None = None,
    offset: Tensor | None = None,
    iterations: int = 50,
) -> Tensor:
    """`argmin_W sum_i s_i CE(x_i W + o, y_i) + penalty/2 ||W||^2`, twice differentiable in x, y, penalty, s.

    Newton's systems are solved in the smaller of the two spaces. With q the probabilities, `Z = X (x) I` and
    `R_i = diag(sqrt q_i) - q_i sqrt(q_i)'`, the Hessian is `Z'R S R'Z + penalty I`, `(d c, d c)`; its inverse,
    `(I - Z'R (S R'ZZ'R + penalty I)^-1 S R'Z) / penalty`, needs `(n c, n c)` only, and no root of a weight.

    Args:
        x: `(..., n, d)`.
        y: `(..., n, c)`, probabilities, such as one-hot labels.
        penalty: above 0, `()` or `(...)`.
        weights: s, `(..., n)`, 0 or more (a mask, for example); None: all 1.
        offset: o `(..., n or 1, c)`, a constant; a large negative one leaves a class out.
        iterations: at most so many Newton steps.

    Returns:
        W `(..., d, c)`.

    Raises:
        ValueError: a negative weight.
        NumericalError: no minimum within `iterations`, or data that are not finite.

    Example:
        >>> x, y = torch.eye(3), torch.eye(3)
        >>> w = softmax_regression(x, y, penalty=0.1)
        >>> bool(((torch.softmax(x @ w, -1) - y + 0.1 * w).abs() < 1e-5).all())
        True
    """
    if x.ndim < 2 or y.ndim != x.ndim or x.shape[:-1] != y.shape[:-1]:
        raise ValueError(
            f"x has to be (..., n, d) and y (..., n, c); they are {tuple(x.shape)} and {tuple(y.shape)}"
        )
    check_example_weights(weights)
    s = torch.ones_like(y[..., 0]) if weights is None else weights
    p = torch.as_tensor(penalty, dtype=x.dtype, device=x.device)
    o = torch.zeros_like(y[..., :1, :]) if offset is None else offset.detach()
    solve = _solve_dual if x.shape[-2] < x.shape[-1] else _solve_primal

    def find(*given: Tensor) -> Tensor:
        x, y, p, s, _ = given
        start = torch.zeros_like(x.mT @ y + p[..., None, None])
        size = 1 + (x.abs() * s.unsqueeze(-1)).sum(-2).unsqueeze(-1)
        return newton(
            lambda w: _loss(w, *given),
            lambda w: _slope(w, *given),
            lambda w, right: solve(w, right, *given),
            start,
            size,
            iterations,
        )

    return argmin(find, _slope, solve, x, y, p, s, o)


def _loss(w: Tensor, x: Tensor, y: Tensor, p: Tensor, s: Tensor, o: Tensor) -> Tensor:
    logits = x @ w + o
    fit = s * (y.sum(-1) * logits.logsumexp(-1) - (y * logits).sum(-1))
    return fit.sum(-1) + p / 2 * w.square().sum((-1, -2))


def _slope(w: Tensor, x: Tensor, y: Tensor, p: Tensor, s: Tensor, o: Tensor) -> Tensor:
    """`X'(s (y_sum softmax - y)) + p W`; rows of y that do not add up to 1 count as they are."""
    error = s.unsqueeze(-1) * (y.sum(-1, keepdim=True) * torch.softmax(x @ w + o, -1) - y)
    return x.mT @ error + p[..., None, None] * w


def _solve_primal(w: Tensor, right: Tensor, x: Tensor, y: Tensor, p: Tensor, s: Tensor, o: Tensor) -> Tensor:
    """`H^-1 right` from H itself, `(d c, d c)`."""
    d, c = w.shape[-2:]
    q = torch.softmax(x @ w + o, -1)
    scale = s * y.sum(-1)
    block = torch.diag_embed(q) - q.unsqueeze(-1) * q.unsqueeze(-2)
    hessian = torch.einsum("...n,...ni,...nj,...nab->...iajb", scale, x, x, block)
    hessian = hessian.reshape(*hessian.shape[:-4], d * c, d * c)
    system = hessian + p[..., None, None] * torch.eye(d * c, dtype=x.dtype, device=x.device)
    return positive_definite_solve(system, right.reshape(*right.shape[:-2], d * c, 1)).reshape(right.shape)


def _solve_dual(w: Tensor, right: Tensor, x: Tensor, y: Tensor, p: Tensor, s: Tensor, o: Tensor) -> Tensor:
    """`H^-1 right` through `(n c, n c)`, by Woodbury's identity."""
    n, c = x.shape[-2], w.shape[-1]
    scale, p = (s * y.sum(-1))[..., None], p[..., None, None]
    half = _half(torch.log_softmax(x @ w + o, -1))
    gram = torch.einsum("...nab,...nm,...mdb->...namd", scale[..., None] * half.mT, x @ x.mT, half.mT)
    inside = scale * torch.einsum("...nba,...nb->...na", half, x @ right)
    found = shifted_solve(
        gram.reshape(*gram.shape[:-4], n * c, n * c), p, inside.reshape(*inside.shape[:-2], n * c, 1)
    )
    back = torch.einsum("...nab,...nb->...na", half, found.reshape(inside.shape))
    return (right - x.mT @ back) / p


def _half(log_q: Tensor) -> Tensor:
    """`R` with `R R' = diag q - q q'`, a block of each row, `(..., n, c, c)`."""
    root = (log_q / 2).exp()
    return torch.diag_embed(root) - log_q.exp().unsqueeze(-1) * root.unsqueeze(-2)


class Softmax(Ridge):
    """Logistic regression with any number of classes as an inner solver: `w = softmax_regression(...)`.

    Arguments as in `Ridge`, with y `(..., n, c)` rows of probabilities.

    Example:
        >>> from metapeft.inner import solve
        >>> solver = Softmax(lambda u: (torch.eye(2), torch.eye(2)), penalty=1.0)
        >>> found = solve(None, {}, {"w": torch.zeros(2, 2)}, solver)
        >>> [round(value, 4) for value in found["w"][0].tolist()]
        [0.3374, -0.3374]
    """

    def fit(self, x: Tensor, y: Tensor, penalty: Any, weights: Tensor | None) -> Tensor:
        return softmax_regression(x, y, penalty, weights)

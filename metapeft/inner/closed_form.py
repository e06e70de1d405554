"""Inner problems with a closed form: ridge regression, weighted or not, and logistic regression by Newton."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.base.errors import NumericalError
from metapeft.inner.argmin import argmin, newton
from metapeft.inner.descent import Setting, check_setting, value_of
from metapeft.inner.solver import Solver, Tensors

Table = tuple[Tensor, Tensor]
Weights = Callable[[Mapping[str, Tensor]], Tensor]


def ridge(x: Tensor, y: Tensor, penalty: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """`argmin_w sum_i s_i ||x_i w - y_i||^2 + penalty ||w||^2`, differentiable in all arguments.

    It is solved in the smaller of the two spaces: `(X'SX + p I)^-1 X'Sy`, or `X' (S XX' + p I)^-1 S y`, which needs
    no root of S and so has its derivatives at a weight of 0 too (R2-D2: Bertinetto et al. 2019, eq. 6).

    Args:
        x: `(..., n, d)`.
        y: `(..., n, c)`.
        penalty: above 0, `()` or `(...)`.
        weights: s, `(..., n)`, 0 or more; None: all 1.

    Returns:
        w `(..., d, c)`.

    Raises:
        ValueError: a negative weight.
        NumericalError: the system is not positive definite (penalty 0 or negative, or not finite).

    Example:
        >>> ridge(torch.eye(2), torch.tensor([[2.0], [4.0]]), penalty=1.0)
        tensor([[1.],
                [2.]])
    """
    if x.ndim < 2 or y.ndim != x.ndim or x.shape[:-1] != y.shape[:-1]:
        raise ValueError(
            f"x has to be (..., n, d) and y (..., n, c); they are {tuple(x.shape)} and {tuple(y.shape)}"
        )
    check_example_weights(weights)
    n, d = x.shape[-2:]
    scale = torch.as_tensor(penalty, dtype=x.dtype, device=x.device)[..., None, None]
    scaled = x if weights is None else weights.unsqueeze(-1) * x
    if n >= d:
        system = scaled.mT @ x + scale * torch.eye(d, dtype=x.dtype, device=x.device)
        return positive_definite_solve(system, scaled.mT @ y)
    gram = scaled @ x.mT
    if weights is None:
        return x.mT @ positive_definite_solve(gram + scale * torch.eye(n, dtype=x.dtype, device=x.device), y)
    return x.mT @ shifted_solve(gram, scale, weights.unsqueeze(-1) * y)


def check_example_weights(weights: Tensor | None) -> None:
    """Raise ValueError where an example counts less than nothing, so that there may be no minimum."""
    if weights is not None and bool((weights < 0).any()):
        raise ValueError(
            f"weights has {float(weights.detach().min()):.3g}: allowed are examples' weights of 0 or more; learned "
            "ones stay there as a function of others (mp.inner.positive, a sigmoid)"
        )


def positive_definite_solve(system: Tensor, right: Tensor) -> Tensor:
    """`system^-1 right` by Cholesky; NumericalError where the system is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(system)
    _check_factored(factor, info)
    return torch.cholesky_solve(right, factor)


def shifted_solve(product: Tensor, shift: Tensor, right: Tensor) -> Tensor:
    """`(S K + shift I)^-1 right` by LU, for a product of S, diagonal and 0 or more, with K, positive semidefinite.

    Its eigenvalues are those of `sqrt(S) K sqrt(S) + shift I`; of roots, the one at 0 would have no derivative.

    Args:
        product: `S K`, `(..., n, n)`.
        shift: above 0, broadcasts to `(..., 1, 1)`.
        right: `(..., n, c)`.

    Raises:
        NumericalError: a negative shift, a system that is singular or not finite.
    """
    system = product + shift * torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)
    factor, pivots, info = torch.linalg.lu_factor_ex(system)
    _check_factored(factor, info | (shift < 0).any())
    solution: Tensor = torch.linalg.lu_solve(factor, pivots, right)
    return solution


def _check_factored(factor: Tensor, info: Tensor) -> None:
    if bool(info.any()) or not bool(torch.isfinite(factor).all()):
        raise NumericalError(
            "a regression in closed form failed: its matrix is not positive definite, or not finite; the "
            "penalty has to be above 0 (parametrise it, for example by its logarithm) and the data finite"
        )


def logistic(
    x: Tensor,
    y: Tensor,
    penalty: float | Tensor,
    weights: Tensor | None = None,
    iterations: int = 50,
) -> Tensor:
    """`argmin_w sum_i s_i log-loss(x_i w, y_i) + penalty/2 ||w||^2` by Newton, with implicit gradients.

    The minimum is found without a graph, its derivative for every argument v is `dw/dv = -H^-1 d(grad)/dv`,
    which can be differentiated again. More than two classes: `softmax_regression`.

    Args:
        x: `(..., n, d)`.
        y: `(..., n)`, labels in [0, 1].
        penalty: above 0, `()` or `(...)`.
        weights: s, `(..., n)`, 0 or more; None: all 1.
        iterations: at most so many Newton steps, each halved until the objective does not increase.

    Returns:
        w `(..., d)`.

    Raises:
        ValueError: a negative weight.
        NumericalError: no minimum within `iterations`, or data that are not finite.

    Example:
        >>> x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 0.0])
        >>> w = logistic(x, y, penalty=0.1)
        >>> bool(((torch.sigmoid(x @ w) - y) @ x + 0.1 * w).abs() < 1e-6)
        True
    """
    if x.ndim < 2 or y.shape != x.shape[:-1]:
        raise ValueError(
            f"x has to be (..., n, d) and y (..., n); they are {tuple(x.shape)}, {tuple(y.shape)}"
        )
    check_example_weights(weights)
    s = torch.ones_like(y) if weights is None else weights
    p = torch.as_tensor(penalty, dtype=x.dtype, device=x.device)

    def output(w: Tensor, x: Tensor) -> Tensor:
        return (x @ w.unsqueeze(-1)).squeeze(-1)

    def loss(w: Tensor, x: Tensor, y: Tensor, p: Tensor, s: Tensor) -> Tensor:
        fit = F.binary_cross_entropy_with_logits(output(w, x), y, weight=s, reduction="none").sum(-1)
        return fit + p / 2 * w.square().sum(-1)

    def slope(w: Tensor, x: Tensor, y: Tensor, p: Tensor, s: Tensor) -> Tensor:
        error = s * (torch.sigmoid(output(w, x)) - y)
        return (x.mT @ error.unsqueeze(-1)).squeeze(-1) + p.unsqueeze(-1) * w

    def solve(w: Tensor, right: Tensor, x: Tensor, y: Tensor, p: Tensor, s: Tensor) -> Tensor:
        out = torch.sigmoid(output(w, x))
        curvature = (s * out * (1 - out)).unsqueeze(-1)
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return positive_definite_solve(
            x.mT @ (curvature * x) + p[..., None, None] * eye, right.unsqueeze(-1)
        ).squeeze(-1)

    def find(*given: Tensor) -> Tensor:
        x, _, p, s = given
        return newton(
            lambda w: loss(w, *given),
            lambda w: slope(w, *given),
            lambda w, right: solve(w, right, *given),
            torch.zeros_like(x[..., 0, :] + p.unsqueeze(-1)),
            1 + (x.abs() * s.unsqueeze(-1)).sum(-2),
            iterations,
        )

    return argmin(find, slope, solve, x, y, p, s)


class Ridge(Solver):
    """Ridge regression in closed form as an inner solver: `w = ridge(x, y, penalty, weights)`.

    One step, exact, differentiable in u through features, penalty and weights; the inner variables are one
    tensor `(d, c)` or `(T, d, c)`. Unroll it (the inner objective may be None) or hand the objective to
    implicit engines.

    Args:
        features: `features(u) -> (x, y)`, with data `features(u, batch)`.
        penalty: above 0: a number, a tensor `()`, or a function of u.
        weights: None, or `weights(u) -> (..., n)`, 0 or more (weighted ridge, data reweighting).
        steps: 1, or 0 for none.

    Example:
        >>> from metapeft.inner import solve
        >>> x, y = torch.eye(2), torch.tensor([[2.0], [4.0]])
        >>> solver = Ridge(lambda u: (x, y), penalty=lambda u: u["log"].exp())
        >>> solve(None, {"log": torch.tensor(0.0)}, {"w": torch.zeros(2, 1)}, solver)
        {'w': tensor([[1.],
                [2.]])}
    """

    reads: ClassVar[Literal["gradients", "batch"]] = "batch"

    def __init__(
        self, features: Callable[..., Table], penalty: Setting, weights: Weights | None = None, steps: int = 1
    ) -> None:
        whole(0, steps=steps)
        check_setting("penalty", penalty)
        self.features, self.penalty, self.weights, self.steps = features, penalty, weights, steps

    def fit(self, x: Tensor, y: Tensor, penalty: Any, weights: Tensor | None) -> Tensor:
        return ridge(x, y, penalty, weights)

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        if len(w) != 1:
            raise ValueError(f"{type(self).__name__} solves for one inner variable, there are {', '.join(w)}")
        x, y = self.features(u) if grads is None else self.features(u, grads)
        weights = None if self.weights is None else self.weights(u)
        ((name, value),) = w.items()
        found = self.fit(x, y, value_of(self.penalty, u), weights)
        if found.shape != value.shape:
            raise ValueError(
                f"the inner variable {name!r} has shape {tuple(value.shape)}, but the features give a "
                f"solution of shape {tuple(found.shape)}"
            )
        return {name: found}, state


class Logistic(Ridge):
    """Logistic regression by Newton as an inner solver: `w = logistic(x, y, penalty, weights)`.

    Arguments as in `Ridge`, with `y (..., n)` in [0, 1] and one inner variable `(d,)` or `(T, d)`.

    Example:
        >>> from metapeft.inner import solve
        >>> x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 0.0])
        >>> found = solve(None, {}, {"w": torch.zeros(1)}, Logistic(lambda u: (x, y), penalty=1.0))
        >>> [round(value, 4) for value in found["w"].tolist()]
        [0.6748]
    """

    def fit(self, x: Tensor, y: Tensor, penalty: Any, weights: Tensor | None) -> Tensor:
        return logistic(x, y, penalty, weights)

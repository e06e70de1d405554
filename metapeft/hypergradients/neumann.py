"""The truncated Neumann series."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.base.arguments import number, whole
from metapeft.hypergradients.implicit import Implicit, NotConverged, Solution, System, relative


@dataclass(frozen=True)
class Neumann(Implicit):
    """The implicit formula with `q = lr * sum_{j<terms} (I - lr H)^j g`.

    It converges to `H^-1 g` where every eigenvalue of H lies in (0, 2 / lr); a residual above 1 (the series
    diverges) is warned about. Time: K inner gradients, `terms` Hessian-vector products (the last one for the
    residual); memory of one step. Source: Lorraine et al. 2020, algorithm 3.

    Args:
        terms: number of terms, 0 or more.
        lr: the factor that makes the series converge, below 2 / (largest eigenvalue of H).

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> outer, inner = lambda u, w: w["x"], lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> c, x = torch.tensor(3.0), torch.tensor(0.0)
        >>> found = hypergradient(outer, inner, {"c": c}, {"x": x}, SGD(1, 1.0), Neumann(terms=2, lr=0.5))
        >>> found.grads, found.residual  # 0.5 (1 + 0.5)
        ({'c': tensor(0.7500)}, tensor(0.2500))
    """

    terms: int = 20
    lr: float = 0.1

    def __post_init__(self) -> None:
        whole(0, terms=self.terms)
        number(above=True, lr=self.lr)

    def solve(self, system: System, g: Tensor) -> Solution:
        power, total = g, torch.zeros_like(g)
        for _ in range(self.terms):
            total = total + power
            power = power - self.lr * system.hessian_product(power)
        residual = relative(power, g)  # g - H q telescopes to (I - lr H)^terms g
        if bool((residual > 1).any()):
            warnings.warn(
                f"the Neumann series diverges (relative residual {residual.max().item():.3g} after "
                f"{self.terms} terms): lr={self.lr} is above 2 / (largest eigenvalue of the inner Hessian), or the "
                'Hessian has a negative eigenvalue; lower lr, or use "cg" with damping.',
                NotConverged,
                stacklevel=5,
            )
        return Solution(self.lr * total, residual)

"""The truncated Neumann series."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metapeft.base.arguments import flag, number, whole
from metapeft.base.stored_settings import LATER
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
        fresh: each factor `I - lr H_j` on an inner batch of its own, and the mixed derivative on another, so that the
            mean over independent batches is the value of the mean objective. `data` then has a list of `terms` batches
            after those of the steps; `residual` is the size of the last term over that of g.
            Source: Ghadimi & Wang 2018, arXiv 1802.02246; Ji et al. 2021 (stocBiO), algorithm 2.

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
    fresh: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        whole(0, terms=self.terms)
        number(above=True, lr=self.lr)
        flag(fresh=self.fresh)
        if self.fresh and not self.terms:
            raise ValueError("fresh=True with terms=0 has no effect: no term takes a batch")

    @property
    def fresh_batches(self) -> int:
        return self.terms if self.fresh else 0

    @property
    def stochastic(self) -> bool:
        return self.fresh

    def solve(self, system: System, g: Tensor) -> Solution:
        power, total = g, torch.zeros_like(g)
        for place in range(self.terms):
            total = total + power
            if not self.fresh or system.fresh is None:
                power = power - self.lr * system.hessian_product(power)
            elif place < self.terms - 1:  # the last batch is for the mixed derivative
                own = replace(system, slope=system.fresh(place))
                power = power - self.lr * own.hessian_product(power)
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

"""Conjugate gradient, all tasks at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.base.arguments import number, whole
from metapeft.base.errors import NumericalError
from metapeft.hypergradients.implicit import (
    Implicit,
    IndefiniteHessian,
    Solution,
    System,
    relative,
)
from metapeft.inner.solver import Tensors


@dataclass(frozen=True)
class CG(Implicit):
    """The implicit formula with `(H + damping I) q = g` solved by conjugate gradients, up to the residual.

    Every task has its own step sizes and residual and stops on its own. Directions of negative curvature are
    counted in the log and warned about; the iterate with the smallest residual is returned.
    Time: K inner gradients and `iterations` + 1 Hessian-vector products; memory of one step.
    Source: iMAML (Rajeswaran et al. 2019), algorithm 2.

    Args:
        iterations: at most so many iterations.
        damping: added to the Hessian's diagonal, 0 or more.
        tolerance: relative residual to stop at; None: 1e-10 in float64, else 1e-5.
        preconditioner: residual to approximate solution, both name -> tensor: linear, symmetric, positive definite.
        start: first guess of q, name -> tensor like w, such as an earlier `log["solution"]`; None: 0.

    Raises:
        NumericalError: no iterate is better than q = 0, or the Hessian is singular and g leaves its range.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> outer, inner = lambda u, w: w["x"], lambda u, w: (w["x"] - u["c"]).square()
        >>> c, x = torch.tensor(3.0), torch.tensor(0.0)
        >>> hypergradient(outer, inner, {"c": c}, {"x": x}, SGD(1, 0.5), CG(damping=2.0)).grads  # 2 / (2 + 2)
        {'c': tensor(0.5000)}
    """

    iterations: int = 20
    damping: float = 0.0
    tolerance: float | None = None
    preconditioner: Callable[[Tensors], Mapping[str, Tensor]] | None = None
    start: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        whole(0, iterations=self.iterations)
        number(damping=self.damping)
        number(0, 1, more="or None", tolerance=0 if self.tolerance is None else self.tolerance)

    def system_damping(self) -> float:
        return self.damping

    def _first_guess(self, system: System, g: Tensor) -> Tensor:
        if self.start is None:
            return torch.zeros_like(g)
        shapes = {name: tuple(value.shape) for name, value in system.w.items()}
        if {name: tuple(value.shape) for name, value in self.start.items()} != shapes:
            raise ValueError(f"start has to be a dict of tensors shaped as the inner variables: {shapes}")
        return system.rows(self.start).to(g.dtype)

    def _precondition(self, system: System, r: Tensor) -> Tensor:
        return r if self.preconditioner is None else system.rows(self.preconditioner(system.named(r)))

    def solve(self, system: System, g: Tensor) -> Solution:
        eps = torch.finfo(g.dtype).eps
        tolerance = self.tolerance if self.tolerance is not None else 1e-10 if eps < 1e-10 else 1e-5
        q = self._first_guess(system, g)
        r = g if self.start is None else g - system.hessian_product(q)
        z = self._precondition(system, r)
        p, rz = z, (r * z).sum(1)
        negative = torch.zeros_like(rz, dtype=torch.bool)
        flat, steepest, iterations = negative.clone(), torch.zeros_like(rz), 0
        active = relative(r, g) > tolerance
        while iterations < self.iterations and bool(active.any()):
            product = system.hessian_product(p)
            curvature, length = (p * product).sum(1), p.square().sum(1)
            steepest = torch.maximum(
                steepest, (curvature / length.clamp_min(torch.finfo(g.dtype).tiny)).abs()
            )
            flat |= active & (curvature.abs() <= 16 * eps * steepest * length)
            negative |= active & (curvature < 0) & ~flat
            active = active & ~flat
            alpha = torch.where(active, rz / torch.where(active, curvature, 1.0), 0.0).unsqueeze(1)
            q, r = q + alpha * p, r - alpha * product
            z = self._precondition(system, r)
            rz, before = (r * z).sum(1), rz
            p = z + torch.where(active, rz / torch.where(active, before, 1.0), 0.0).unsqueeze(1) * p
            active = active & (relative(r, g) > tolerance)
            iterations += 1
        residual = relative(g - system.hessian_product(q), g)
        self._report(residual, negative, flat, max(tolerance, eps**0.5))
        return Solution(q, residual, {"iterations": iterations, "negative_curvature": negative})

    def _report(self, residual: Tensor, negative: Tensor, flat: Tensor, tolerance: float) -> None:
        """Raise where the solve failed, warn where it met negative curvature."""
        if not bool(residual.isfinite().all()):
            raise NumericalError("conjugate gradient failed: a Hessian-vector product is not finite")
        lost = flat & (residual > tolerance)
        if bool(lost.any()):
            raise NumericalError(
                f"conjugate gradient failed in task(s) {lost.nonzero().flatten().tolist()} (relative "
                f"residual {residual[lost].max().item():.3g}): the inner Hessian is singular and the outer "
                "gradient leaves its range, so the solution of the inner problem is not a function of u; add "
                "damping or a proximal term"
            )
        if not bool(negative.any()):
            return
        tasks = negative.nonzero().flatten().tolist()
        worst = residual[negative].max().item()
        sentence = (
            f"the inner Hessian is indefinite in task(s) {tasks}: conjugate gradient met negative curvature, "
            f"so the returned point is no minimum of the inner objective (relative residual {worst:.3g}); "
            "add damping or a proximal term, take more inner steps, or differentiate the steps (unroll)"
        )
        if worst >= 1:
            raise NumericalError(sentence)
        warnings.warn(sentence, IndefiniteHessian, stacklevel=6)

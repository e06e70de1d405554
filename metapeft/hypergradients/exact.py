"""The dense Hessian, for small problems."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.base.arguments import number, whole
from metapeft.base.errors import NumericalError
from metapeft.hypergradients.implicit import Implicit, Solution, System, relative


@dataclass(frozen=True)
class Exact(Implicit):
    """The implicit formula with `q = (H + damping I)^+ g`, H built column by column for each task.

    A singular Hessian is legal as long as g stays in its range (the gauge freedom of low-rank factors, a
    softmax head): the solution of least norm is taken, on which the hypergradient then does not depend.
    Time: K inner gradients, n Hessian-vector products and T eigendecompositions of size n, the number of
    inner entries a task; memory T n^2. The oracle for the other engines.

    Args:
        damping: added to the Hessian's diagonal, 0 or more.
        limit: largest n that is accepted.

    Raises:
        ValueError: n above the limit.
        NumericalError: a singular Hessian whose range g leaves.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> outer, inner = lambda u, w: w["x"], lambda u, w: (w["x"] - u["c"] ** 2).square()
        >>> c, x = torch.tensor(3.0), torch.tensor(0.0)
        >>> hypergradient(outer, inner, {"c": c}, {"x": x}, SGD(1, 0.5), Exact()).grads
        {'c': tensor(6.)}
    """

    damping: float = 0.0
    limit: int = 2000

    def __post_init__(self) -> None:
        number(damping=self.damping)
        whole(0, limit=self.limit)

    def system_damping(self) -> float:
        return self.damping

    def solve(self, system: System, g: Tensor) -> Solution:
        n = g.shape[1]
        if n > self.limit:
            raise ValueError(
                f"the inner variables have {n} entries a task, above limit={self.limit}: a dense Hessian would have "
                f'{n} x {n} entries; use "cg", or raise the limit'
            )
        units = torch.eye(n, dtype=g.dtype, device=g.device)
        columns = [system.hessian_product(unit.expand_as(g)) for unit in units]
        hessian = torch.stack(columns, dim=2)
        if not bool(hessian.isfinite().all()):
            raise NumericalError("the inner Hessian is not finite at the returned point")
        values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
        eps = torch.finfo(g.dtype).eps
        cut = n * eps * values.abs().amax(1, keepdim=True)
        inside = values.abs() > cut
        parts = (vectors.mT @ g.unsqueeze(2)).squeeze(2)
        outside = relative(torch.where(inside, 0.0, parts), g)
        lost = outside > eps**0.5
        if bool(lost.any()):
            raise NumericalError(
                f"the inner Hessian is singular in task(s) {lost.nonzero().flatten().tolist()} and "
                f"{outside[lost].max().item():.3g} of the outer gradient lies outside its range, so the "
                "solution of the inner problem is not a function of u; add damping or a proximal term"
            )
        scaled = torch.where(inside, parts / torch.where(inside, values, 1.0), 0.0)
        q = (vectors @ scaled.unsqueeze(2)).squeeze(2)
        rank = inside.sum(1)
        log = {"eigenvalues": values, "rank": rank}
        return Solution(q, relative(g - system.hessian_product(q), g), log)

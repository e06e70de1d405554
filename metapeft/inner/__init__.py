"""Inner solvers: how a task's variables move, and maps that keep them within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.inner.table import registry

if TYPE_CHECKING:
    from metapeft.inner.adam import Adam, AdamW
    from metapeft.inner.closed_form import Logistic, Ridge, logistic, ridge
    from metapeft.inner.constraints import box, from_box, from_positive, from_simplex, positive, simplex
    from metapeft.inner.descent import SGD, Descent
    from metapeft.inner.fixed_point import FixedPoint, Step
    from metapeft.inner.higher_optimizer import Higher
    from metapeft.inner.lbfgs import LBFGS
    from metapeft.inner.loop import solve
    from metapeft.inner.momentum import Momentum, Nesterov
    from metapeft.inner.multiclass import Softmax, softmax_regression
    from metapeft.inner.projections import Ball, Box, Simplex
    from metapeft.inner.proximal import Projected, Proximal
    from metapeft.inner.rate_net import RateNet
    from metapeft.inner.solver import Solver
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "LBFGS",
    "SGD",
    "Adam",
    "AdamW",
    "Ball",
    "Box",
    "Descent",
    "FixedPoint",
    "Higher",
    "Logistic",
    "Momentum",
    "Nesterov",
    "Projected",
    "Proximal",
    "RateNet",
    "Ridge",
    "Simplex",
    "Softmax",
    "Solver",
    "Step",
    "box",
    "from_box",
    "from_positive",
    "from_simplex",
    "logistic",
    "positive",
    "registry",
    "ridge",
    "simplex",
    "softmax_regression",
    "solve",
]

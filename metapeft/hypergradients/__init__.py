"""Hypergradients: engines for the derivative of an outer objective through an inner solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.hypergradients.table import registry

if TYPE_CHECKING:
    from metapeft.hypergradients.cg import CG
    from metapeft.hypergradients.direct import Direct
    from metapeft.hypergradients.envelope import Envelope
    from metapeft.hypergradients.exact import Exact
    from metapeft.hypergradients.finite_difference import AutoLoRA, FiniteDifference
    from metapeft.hypergradients.first_order import FirstOrder
    from metapeft.hypergradients.fixed_point import FixedPointImplicit
    from metapeft.hypergradients.forward import Forward
    from metapeft.hypergradients.implicit import IndefiniteHessian, NotConverged
    from metapeft.hypergradients.multi_step import MultiStep
    from metapeft.hypergradients.neumann import Neumann
    from metapeft.hypergradients.problem import Engine, Problem, Result, hypergradient, resolve
    from metapeft.hypergradients.recompute import Recompute
    from metapeft.hypergradients.reptile import Reptile
    from metapeft.hypergradients.soba import SOBA
    from metapeft.hypergradients.unroll import Truncated, Unroll
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "CG",
    "SOBA",
    "AutoLoRA",
    "Direct",
    "Engine",
    "Envelope",
    "Exact",
    "FiniteDifference",
    "FirstOrder",
    "FixedPointImplicit",
    "Forward",
    "IndefiniteHessian",
    "MultiStep",
    "Neumann",
    "NotConverged",
    "Problem",
    "Recompute",
    "Reptile",
    "Result",
    "Truncated",
    "Unroll",
    "hypergradient",
    "registry",
    "resolve",
]

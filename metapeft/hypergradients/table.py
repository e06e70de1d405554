"""The table of hypergradients: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.hypergradients",
    "hypergradient",
    attributes={
        "hypergradient": "problem",
        "Problem": "problem",
        "Result": "problem",
        "Engine": "problem",
        "resolve": "problem",
        "Unroll": "unroll",
        "Truncated": "unroll",
        "Recompute": "recompute",
        "MultiStep": "multi_step",
        "Forward": "forward",
        "FirstOrder": "first_order",
        "Envelope": "envelope",
        "Direct": "direct",
        "FiniteDifference": "finite_difference",
        "AutoLoRA": "finite_difference",
        "Neumann": "neumann",
        "CG": "cg",
        "Exact": "exact",
        "FixedPointImplicit": "fixed_point",
        "SOBA": "soba",
        "Reptile": "reptile",
        "NotConverged": "implicit",
        "IndefiniteHessian": "implicit",
    },
    names={
        "unroll": "Unroll",
        "truncated": "Truncated",
        "recompute": "Recompute",
        "multi-step": "MultiStep",
        "forward": "Forward",
        "first-order": "FirstOrder",
        "envelope": "Envelope",
        "direct": "Direct",
        "finite-difference": "FiniteDifference",
        "autolora": "AutoLoRA",
        "neumann": "Neumann",
        "cg": "CG",
        "exact": "Exact",
        "fixed-point": "FixedPointImplicit",
        "soba": "SOBA",
        "reptile": "Reptile",
    },
)

"""The table of inner solvers: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.inner",
    "inner solver",
    attributes={
        "Solver": "solver",
        "solve": "loop",
        "Descent": "descent",
        "SGD": "descent",
        "Step": "fixed_point",
        "FixedPoint": "fixed_point",
        "Momentum": "momentum",
        "Nesterov": "momentum",
        "Adam": "adam",
        "AdamW": "adam",
        "LBFGS": "lbfgs",
        "Proximal": "proximal",
        "Projected": "proximal",
        "Higher": "higher_optimizer",
        "RateNet": "rate_net",
        "Box": "projections",
        "Simplex": "projections",
        "Ball": "projections",
        "Ridge": "closed_form",
        "Logistic": "closed_form",
        "Softmax": "multiclass",
        "ridge": "closed_form",
        "logistic": "closed_form",
        "softmax_regression": "multiclass",
        "positive": "constraints",
        "from_positive": "constraints",
        "box": "constraints",
        "from_box": "constraints",
        "simplex": "constraints",
        "from_simplex": "constraints",
    },
    names={
        "sgd": "SGD",
        "momentum": "Momentum",
        "nesterov": "Nesterov",
        "adam": "Adam",
        "adamw": "AdamW",
        "lbfgs": "LBFGS",
    },
)

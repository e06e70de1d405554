"""The table of heads: adding one is its file and its line here."""

from __future__ import annotations

from typing import Any

from metapeft._registry import Registry

registry = Registry(
    __name__,
    "head",
    attributes={
        "Head": "head",
        "Learned": "linear",
        "Zero": "linear",
        "PrototypeInit": "linear",
        "Prototypes": "closed_form",
        "Ridge": "closed_form",
        "WeightedRidge": "regression",
        "Logistic": "regression",
        "KNN": "closed_form",
    },
    names={
        "learned": "Learned",
        "zero": "Zero",
        "prototype-init": "PrototypeInit",
        "prototypes": "Prototypes",
        "ridge": "Ridge",
        "weighted-ridge": "WeightedRidge",
        "logistic": "Logistic",
        "knn": "KNN",
    },
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)

"""The table of heads: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.heads",
    "head",
    attributes={
        "Head": "head",
        "Learned": "layers",
        "Zero": "layers",
        "PrototypeInit": "centroids",
        "Cosine": "centroids",
        "Prototypes": "centroids",
        "Ridge": "ridge",
        "WeightedRidge": "ridge",
        "Logistic": "logistic",
        "KNN": "neighbours",
    },
    names={
        "learned": "Learned",
        "zero": "Zero",
        "prototype-init": "PrototypeInit",
        "prototypes": "Prototypes",
        "cosine": "Cosine",
        "ridge": "Ridge",
        "weighted-ridge": "WeightedRidge",
        "logistic": "Logistic",
        "knn": "KNN",
    },
)

"""Heads: what turns features into logits, from a task's support set or with the backbone's own classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.heads.table import registry

if TYPE_CHECKING:
    from metapeft.heads.centroids import Cosine, PrototypeInit, Prototypes
    from metapeft.heads.head import Head
    from metapeft.heads.layers import Learned, Zero
    from metapeft.heads.logistic import Logistic
    from metapeft.heads.neighbours import KNN
    from metapeft.heads.ridge import Ridge, WeightedRidge
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "KNN",
    "Cosine",
    "Head",
    "Learned",
    "Logistic",
    "PrototypeInit",
    "Prototypes",
    "Ridge",
    "WeightedRidge",
    "Zero",
    "registry",
]

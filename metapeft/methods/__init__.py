"""Methods: the rows of the field's table, each a recipe of a few lines that returns a `Learner`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.methods.table import registry

if TYPE_CHECKING:
    from metapeft.methods.full_updates import anil, boil, fomaml, imaml, maml, meta_sgd, reptile
    from metapeft.methods.maml_plus_plus import annealing, mamlpp
    from metapeft.methods.recipes import (
        autolora,
        centroids,
        lora_ml,
        metalora_cp,
        metalora_tr,
        metapeft,
        protonet,
        r2d2,
        sr_lora,
    )
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "anil",
    "annealing",
    "autolora",
    "boil",
    "centroids",
    "fomaml",
    "imaml",
    "lora_ml",
    "maml",
    "mamlpp",
    "meta_sgd",
    "metalora_cp",
    "metalora_tr",
    "metapeft",
    "protonet",
    "r2d2",
    "registry",
    "reptile",
    "sr_lora",
]

"""The table of inner solvers: adding one is its file and its line here."""

from __future__ import annotations

from typing import Any

from metapeft._registry import Registry

registry = Registry(
    __name__,
    "inner solver",
    attributes={
        "Solver": "solver",
        "solve": "loop",
        "Descent": "descent",
        "SGD": "descent",
        "Step": "fixed_point",
        "FixedPoint": "fixed_point",
    },
    names={"sgd": "SGD"},
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)

"""The table of hypergradients: adding one is its file and its line here."""

from __future__ import annotations

from typing import Any

from metapeft._registry import Registry

registry = Registry(
    __name__,
    "hypergradient",
    attributes={
        "hypergradient": "problem",
        "Problem": "problem",
        "Result": "problem",
        "Engine": "problem",
        "resolve": "problem",
        "Unroll": "unroll",
        "FirstOrder": "first_order",
        "Envelope": "envelope",
        "Direct": "direct",
    },
    names={
        "unroll": "Unroll",
        "first-order": "FirstOrder",
        "envelope": "Envelope",
        "direct": "Direct",
    },
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)

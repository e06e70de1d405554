"""The table of generators: adding one is its file and its line here."""

from __future__ import annotations

from typing import Any

from metapeft._registry import Registry

registry = Registry(
    __name__,
    "generator",
    attributes={"Generator": "generator", "MappingNet": "mapping_net", "OtherTask": "control"},
    names={"mapping-net": "MappingNet"},
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)

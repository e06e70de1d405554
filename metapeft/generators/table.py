"""The table of generators: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.generators",
    "generator",
    attributes={"Generator": "generator", "MappingNet": "mapping_net", "OtherTask": "control"},
    names={"mapping-net": "MappingNet"},
)

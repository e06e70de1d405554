"""Generators: networks that write a task's seeds from its support set, and the controls of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.generators.table import registry

if TYPE_CHECKING:
    from metapeft.generators.attention_encoder import AttentionEncoder
    from metapeft.generators.class_encoder import ClassEncoder
    from metapeft.generators.control import Blind, OtherTask
    from metapeft.generators.generator import Generator
    from metapeft.generators.mapping_net import MappingNet
    from metapeft.generators.pair_encoder import PairEncoder
    from metapeft.generators.support import Support
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "AttentionEncoder",
    "Blind",
    "ClassEncoder",
    "Generator",
    "MappingNet",
    "OtherTask",
    "PairEncoder",
    "Support",
    "registry",
]

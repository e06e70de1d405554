"""Updates: what is added to a frozen layer, attached to a backbone, merged into it, and carried from and to PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.updates.table import registry

if TYPE_CHECKING:
    from metapeft.updates.attach_model import attach
    from metapeft.updates.attached import AttachedModel
    from metapeft.updates.formats.cp import CP
    from metapeft.updates.formats.decomposition import decompose
    from metapeft.updates.formats.full import Full
    from metapeft.updates.formats.lora import LoRA
    from metapeft.updates.formats.ranking import ranks
    from metapeft.updates.formats.scores import Scores
    from metapeft.updates.formats.selection import Softmax, at_ranks, costs
    from metapeft.updates.formats.tensor_ring import TensorRing
    from metapeft.updates.peft_base import load_base
    from metapeft.updates.peft_export import export_peft
    from metapeft.updates.peft_import import from_peft, import_peft
    from metapeft.updates.peft_ranks import lora_config
    from metapeft.updates.singular_terms import canonical
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "CP",
    "AttachedModel",
    "Full",
    "LoRA",
    "Scores",
    "Softmax",
    "TensorRing",
    "at_ranks",
    "attach",
    "canonical",
    "costs",
    "decompose",
    "export_peft",
    "from_peft",
    "import_peft",
    "load_base",
    "lora_config",
    "ranks",
    "registry",
]

"""The table of updates: adding one is its file and its line here."""

from __future__ import annotations

from typing import Any

from metapeft._registry import Registry

registry = Registry(
    __name__,
    "update format or selection",
    attributes={
        "attach": "attaching",
        "AttachedModel": "attached",
        "Full": "full",
        "LoRA": "lora",
        "CP": "cp",
        "TensorRing": "tensor_ring",
        "decompose": "decomposition",
        "Softmax": "selection",
        "costs": "selection",
        "at_ranks": "selection",
        "ranks": "ranking",
        "export_peft": "peft",
        "import_peft": "peft_import",
        "load_base": "peft_import",
    },
    names={"full": "Full", "lora": "LoRA", "cp": "CP", "tensor-ring": "TensorRing", "softmax": "Softmax"},
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)

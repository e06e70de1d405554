"""The table of updates: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.updates",
    "update format or selection",
    attributes={
        "attach": "attach_model",
        "AttachedModel": "attached",
        "Full": "formats.full",
        "LoRA": "formats.lora",
        "CP": "formats.cp",
        "TensorRing": "formats.tensor_ring",
        "decompose": "formats.decomposition",
        "Softmax": "formats.selection",
        "costs": "formats.selection",
        "at_ranks": "formats.selection",
        "ranks": "formats.ranking",
        "Scores": "formats.scores",
        "canonical": "singular_terms",
        "lora_config": "peft_ranks",
        "export_peft": "peft_export",
        "from_peft": "peft_import",
        "import_peft": "peft_import",
        "load_base": "peft_base",
    },
    names={"full": "Full", "lora": "LoRA", "cp": "CP", "tensor-ring": "TensorRing", "softmax": "Softmax"},
)

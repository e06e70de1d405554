"""The table of generators: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.generators",
    "generator",
    attributes={
        "Generator": "generator",
        "Support": "support",
        "MappingNet": "mapping_net",
        "ClassEncoder": "class_encoder",
        "PairEncoder": "pair_encoder",
        "AttentionEncoder": "attention_encoder",
        "OtherTask": "control",
        "Blind": "control",
    },
    names={
        "mapping-net": "MappingNet",
        "class-encoder": "ClassEncoder",
        "pair-encoder": "PairEncoder",
        "attention-encoder": "AttentionEncoder",
    },
)

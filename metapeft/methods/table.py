"""The table of methods: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.methods",
    "method",
    attributes={
        "maml": "full_updates",
        "meta_sgd": "full_updates",
        "fomaml": "full_updates",
        "reptile": "full_updates",
        "imaml": "full_updates",
        "anil": "full_updates",
        "boil": "full_updates",
        "protonet": "recipes",
        "r2d2": "recipes",
        "centroids": "recipes",
        "sr_lora": "recipes",
        "lora_ml": "recipes",
        "autolora": "recipes",
        "metalora_cp": "recipes",
        "metalora_tr": "recipes",
        "metapeft": "recipes",
        "mamlpp": "maml_plus_plus",
        "annealing": "maml_plus_plus",
    },
    names={
        "maml": "maml",
        "meta-sgd": "meta_sgd",
        "fomaml": "fomaml",
        "reptile": "reptile",
        "imaml": "imaml",
        "anil": "anil",
        "boil": "boil",
        "protonet": "protonet",
        "r2d2": "r2d2",
        "centroids": "centroids",
        "sr-lora": "sr_lora",
        "lora-ml": "lora_ml",
        "autolora": "autolora",
        "metalora-cp": "metalora_cp",
        "metalora-tr": "metalora_tr",
        "metapeft": "metapeft",
        "maml++": "mamlpp",
    },
)

"""The table of datasets: adding one is its file and its line here."""

from __future__ import annotations

from typing import Any

from metapeft._registry import Registry

registry = Registry(
    __name__,
    "data set",
    attributes={
        "load_dataset": "loading",
        "ImageData": "images",
        "Preprocess": "images",
        "Rotated": "rotated",
        "read_omniglot": "omniglot",
        "read_miniimagenet": "miniimagenet",
        "read_folder": "folder",
        "read_glyphs": "glyphs",
        "read_glyph_pairs": "glyph_pairs",
        "read_sinusoid": "sinusoid",
        "Sinusoid": "sinusoid",
    },
    names={
        "omniglot": "read_omniglot",
        "miniimagenet": "read_miniimagenet",
        "folder": "read_folder",
        "glyphs": "read_glyphs",
        "glyph-pairs": "read_glyph_pairs",
        "sinusoid": "read_sinusoid",
    },
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)

"""Data sets: readers of images and of functions, by name or by their own options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.datasets.table import registry

if TYPE_CHECKING:
    from metapeft.datasets.by_name import load_dataset
    from metapeft.datasets.coloured_glyphs import read_coloured_glyphs
    from metapeft.datasets.few_shot_sets import read_cifar_fs, read_cub, read_fc100, read_tieredimagenet
    from metapeft.datasets.folder import read_folder
    from metapeft.datasets.functions import Functions, read_functions
    from metapeft.datasets.glyph_pairs import read_glyph_pairs
    from metapeft.datasets.glyphs import read_glyphs
    from metapeft.datasets.images import ImageData, Preprocess
    from metapeft.datasets.importing import import_dataset
    from metapeft.datasets.intents import read_banking77, read_clinc150
    from metapeft.datasets.miniimagenet import read_miniimagenet
    from metapeft.datasets.omniglot import read_omniglot
    from metapeft.datasets.omniglot_pairs import read_omniglot_pairs
    from metapeft.datasets.reading import SupportImages, read_images, read_support
    from metapeft.datasets.rotated import Rotated
    from metapeft.datasets.sinusoid import Sinusoid, read_sinusoid
    from metapeft.datasets.tensors import TensorData, data
    from metapeft.datasets.text_files import read_text
    from metapeft.datasets.texts import TextData
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "Functions",
    "ImageData",
    "Preprocess",
    "Rotated",
    "Sinusoid",
    "SupportImages",
    "TensorData",
    "TextData",
    "data",
    "import_dataset",
    "load_dataset",
    "read_banking77",
    "read_cifar_fs",
    "read_clinc150",
    "read_coloured_glyphs",
    "read_cub",
    "read_fc100",
    "read_folder",
    "read_functions",
    "read_glyph_pairs",
    "read_glyphs",
    "read_images",
    "read_miniimagenet",
    "read_omniglot",
    "read_omniglot_pairs",
    "read_sinusoid",
    "read_support",
    "read_text",
    "read_tieredimagenet",
    "registry",
]

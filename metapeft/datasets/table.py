"""The table of datasets: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.datasets",
    "data set",
    attributes={
        "load_dataset": "by_name",
        "ImageData": "images",
        "Preprocess": "images",
        "TensorData": "tensors",
        "data": "tensors",
        "Rotated": "rotated",
        "read_omniglot": "omniglot",
        "read_miniimagenet": "miniimagenet",
        "read_cifar_fs": "few_shot_sets",
        "read_fc100": "few_shot_sets",
        "read_tieredimagenet": "few_shot_sets",
        "read_cub": "few_shot_sets",
        "import_dataset": "importing",
        "read_folder": "folder",
        "read_images": "reading",
        "read_support": "reading",
        "SupportImages": "reading",
        "read_glyphs": "glyphs",
        "read_glyph_pairs": "glyph_pairs",
        "read_omniglot_pairs": "omniglot_pairs",
        "read_coloured_glyphs": "coloured_glyphs",
        "read_functions": "functions",
        "Functions": "functions",
        "read_sinusoid": "sinusoid",
        "Sinusoid": "sinusoid",
    },
    names={
        "omniglot": "read_omniglot",
        "miniimagenet": "read_miniimagenet",
        "cifar-fs": "read_cifar_fs",
        "fc100": "read_fc100",
        "tieredimagenet": "read_tieredimagenet",
        "cub": "read_cub",
        "folder": "read_folder",
        "glyphs": "read_glyphs",
        "glyph-pairs": "read_glyph_pairs",
        "omniglot-pairs": "read_omniglot_pairs",
        "coloured-glyphs": "read_coloured_glyphs",
        "functions": "read_functions",
        "sinusoid": "read_sinusoid",
    },
)

"""`metapeft data`: what a data set holds."""

from __future__ import annotations

from pathlib import Path

from metapeft.datasets.shell_options import reader_options


def data(
    name: str = "glyphs",
    *,
    root: Path | None = None,
    data_options: tuple[str, ...] = (),
    download: bool = False,
) -> int:
    """Check a data set and say what it holds: counts, classes, hash, split by split; its store is built on the way.

    Parameters
    ----------
    name
        Data set: glyphs, glyph-pairs, coloured-glyphs, omniglot, omniglot-pairs, miniimagenet or folder.
    root
        Where the data lies; default $METAPEFT_DATA.
    data_options
        What its reader takes beside that, as name=value: split_by=characters, size=40.
    download
        Fetch it first from its original address, where it has one.
    """
    from rich.console import Console
    from rich.table import Table

    from metapeft.datasets.by_name import load_dataset

    options = reader_options(data_options, root) | ({"download": True} if download else {})
    table = Table(title=name)
    for column in ("split", "images", "classes", "shape", "hash"):
        table.add_column(column)
    for split in ("train", "val", "test"):
        found = load_dataset(name, split=split, **options)
        if not hasattr(found, "images"):
            raise ValueError(f"{name} holds no images: its tasks are drawn when they are asked for")
        shape = "x".join(str(size) for size in found.images.shape[1:])
        table.add_row(split, str(len(found)), str(len(found.classes)), shape, found.split_hash)
    Console().print(table)
    return 0

"""`metapeft data`: what a data set holds; `metapeft data import`: one store of it from any form."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from metapeft.base.whole_numbers import Whole
from metapeft.datasets.shell_options import reader_options

app = App(
    name="data", help="Look at a data set: counts, classes, hash; build its store.", help_format="plaintext"
)


@app.default
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
        Data set: glyphs, glyph-pairs, coloured-glyphs, omniglot, omniglot-pairs, miniimagenet, cifar-fs, fc100,
        tieredimagenet, cub or folder; of texts banking77, clinc150 or text.
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
    for column in ("split", "items", "classes", "shape", "hash"):
        table.add_column(column)
    for split in ("train", "val", "test"):
        found = load_dataset(name, split=split, **options)
        if hasattr(found, "draw"):
            raise ValueError(f"{name} holds no images: its tasks are drawn when they are asked for")
        if hasattr(found, "lengths"):
            shape = f"{min(found.lengths)} to {max(found.lengths)} tokens"
        else:
            shape = "x".join(str(size) for size in found.images.shape[1:])
        table.add_row(split, str(len(found)), str(len(found.classes)), shape, found.split_hash)
    Console().print(table)
    return 0


@app.command(name="import")
def import_(
    name: str, path: Path, *, to: Path | None = None, size: Whole | None = None, incomplete: bool = False
) -> int:
    """Recognise the form of a published data set, check it, and write it as one store that is mapped into memory.

    Parameters
    ----------
    name
        Data set: miniimagenet, cifar-fs, fc100, tieredimagenet or cub.
    path
        The folder that holds its files; docs/data.md has the table of forms.
    to
        The folder whose store/ is written; default $METAPEFT_DATA and the data set's name.
    size
        Height and width in pixels; default 32 for sets of CIFAR, else 84.
    incomplete
        Take classes with fewer images than were published.
    """
    from metapeft.datasets.importing import import_dataset

    for split, form in import_dataset(name, path, to, size=size, complete=not incomplete).items():
        print(f"{name}, {split}: from {form}")
    return 0

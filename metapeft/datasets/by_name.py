"""Data sets by name."""

from __future__ import annotations

import inspect
import os
from typing import Any

from metapeft.base.suggestions import did_you_mean
from metapeft.datasets.table import registry


def load_dataset(
    name: str, root: str | os.PathLike[str] | None = None, split: str = "train", **options: Any
) -> Any:
    """A data set by its name; the options of each are those of its reader, `metapeft.datasets.read_<name>`.

    Args:
        name: `"glyphs"`, `"glyph-pairs"` and `"coloured-glyphs"` (embedded, no download), `"omniglot"`,
            `"omniglot-pairs"`, `"miniimagenet"`, `"folder"`; `"banking77"`, `"clinc150"` and `"text"`, which are
            texts; or `"sinusoid"` and `"functions"`.
        root: where the data lies; None: `$METAPEFT_DATA/<its folder>`.
        split: `"train"`, `"val"` or `"test"`.
        **options: the reader's own, such as `size=28`, or of texts `tokenizer="minilm", max_length=48`.

    Returns:
        An `ImageData`; of texts a `TextData`; for `"sinusoid"` and `"functions"` a family of regression tasks. All of
        them go into an `EpisodeSampler`.

    Raises:
        ValueError: for unknown names and options, with the nearest known one.
        DataError: for data that is missing, incomplete or damaged; says what to put where.

    Example:
        >>> load_dataset("omniglot", sise=28)
        Traceback (most recent call last):
        ...
        ValueError: data set 'omniglot' has no option 'sise': it has split_by, size, rotations, validation, \
download; did you mean 'size'?
    """
    if not isinstance(name, str):
        raise ValueError(f"name={name!r}: the name of a data set is needed, such as 'omniglot'")
    reader = registry.resolve(name)
    known = [option for option in inspect.signature(reader).parameters if option not in ("root", "split")]
    for option in options:
        if option not in known:
            has = ", ".join(known) or "none"
            raise ValueError(
                f"data set {name!r} has no option {option!r}: it has {has}{did_you_mean(option, known)}"
            )
    data = reader(root, split, **options)
    if "tokenizer" in options:
        if data.tokenizer is None:  # the user's own object, of which no run folder can say how to make it
            return data
        options["tokenizer"] = data.tokenizer
    # how to read it again, for run folders
    data.loaded = {"name": name, "root": None if root is None else os.fspath(root), "split": split, **options}
    return data

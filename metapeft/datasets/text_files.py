"""Texts of one's own: a file a split, each with classes of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from metapeft.base.errors import DataError
from metapeft.datasets.images import SPLITS, check_split
from metapeft.datasets.text_rows import class_names, read_text_rows
from metapeft.datasets.texts import TextData


def read_text(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    tokenizer: Any = "minilm",
    max_length: int = 128,
) -> TextData:
    """Labelled texts in a folder: `train`, `val` and `test`, each `.jsonl` or `.csv`, which share no class.

    Args:
        root: the folder. split: which of the files.
        tokenizer, max_length: as `TextData` has them.

    Raises:
        ValueError: no root.
        DataError: a file that is missing or damaged, a class that two of the files have.
        ImportError: the tokenizer's package is not installed.

    Example:
        >>> import tempfile
        >>> words = lambda texts, pairs, truncation, max_length: {"input_ids": [[7] * len(t.split()) for t in texts]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.jsonl").write_text('{"text": "my card", "label": "card"}')
        ...     read_text(folder, tokenizer=words).classes
        ('card',)
    """
    check_split(split)
    if root is None:
        raise ValueError(
            "root=None: 'text' needs the folder that holds train.jsonl, val.jsonl and test.jsonl"
        )
    found = {one: _file(Path(root), one) for one in SPLITS}
    if found[split] is None:
        raise DataError(f"{Path(root)} has no {split}.jsonl and no {split}.csv, rows of a text and a label")
    rows = {one: read_text_rows(file) for one, file in found.items() if file is not None}
    names = {one: class_names(own) for one, own in rows.items()}
    for other, classes in names.items():
        both = sorted(set(classes) & set(names[split]))
        if other != split and both:
            raise DataError(
                f"{Path(root)}: the class {both[0]!r} is in {split} and in {other}; few-shot tasks are tested on "
                "classes that training never showed: give each class to one of the files"
            )
    return TextData(rows[split], tokenizer, max_length, names[split], split, Path(root).name or "text")


def _file(root: Path, split: str) -> Path | None:
    return next((f for end in ("jsonl", "csv") if (f := root / f"{split}.{end}").is_file()), None)

"""Intents of customers: BANKING77 and CLINC150, split by intent.

Source: Casanueva et al. 2020, arXiv 2003.04807; Larson et al. 2019, arXiv 1909.02027.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metapeft.base.arguments import whole
from metapeft.base.errors import DataError
from metapeft.datasets.images import check_split
from metapeft.datasets.store import data_root
from metapeft.datasets.texts import TextData

PER_INTENT = 40  # sentences of each intent, the first ones
MAX_TOKENS = 48
# Intents of the validation and of the test split; the others are for training.
HELD_OUT = {"banking77": (15, 22), "clinc150": (30, 40)}


def read_banking77(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    tokenizer: Any = "minilm",
    max_length: int = MAX_TOKENS,
    per_intent: int = PER_INTENT,
) -> TextData:
    """BANKING77, questions to a bank of 77 intents: 40 for training, 15 for validation, 22 for test.

    The split is by the order of the SHA-256 of the intents' names, for the published one has all intents in every part.

    Args:
        root: the folder that holds `banking_data/`; None: `$METAPEFT_DATA/text/banking77`.
        split: `"train"`, `"val"` or `"test"`; they share no intent.
        tokenizer, max_length: as `TextData` has them. per_intent: sentences of each, the first ones.

    Raises:
        DataError: data that is missing. ImportError: the tokenizer's package is not installed.

    Example:
        >>> read_banking77(per_intent=0)
        Traceback (most recent call last):
        ValueError: per_intent=0: allowed is a whole number of at least 1
    """
    return _read("banking77", root, split, tokenizer, max_length, per_intent)


def read_clinc150(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    tokenizer: Any = "minilm",
    max_length: int = MAX_TOKENS,
    per_intent: int = PER_INTENT,
) -> TextData:
    """CLINC150 without its out-of-scope sentences, 150 intents of ten domains: 80, 30 and 40 of them.

    Args:
        root: the folder that holds `data/`; None: `$METAPEFT_DATA/text/clinc150`.
        split, tokenizer, max_length, per_intent: as `read_banking77` has them.

    Raises:
        DataError: data that is missing. ImportError: the tokenizer's package is not installed.

    Example:
        >>> read_clinc150(per_intent=0)
        Traceback (most recent call last):
        ValueError: per_intent=0: allowed is a whole number of at least 1
    """
    return _read("clinc150", root, split, tokenizer, max_length, per_intent)


def _read(
    name: str,
    root: str | os.PathLike[str] | None,
    split: str,
    tokenizer: Any,
    max_length: int,
    per_intent: int,
) -> TextData:
    check_split(split)
    whole(per_intent=per_intent)
    rows = first(sentences(name, root), per_intent)
    names = split_classes([intent for _, intent in rows], HELD_OUT[name])[split]
    kept = [{"text": text, "label": intent} for text, intent in rows if intent in set(names)]
    return TextData(kept, tokenizer, max_length, names, split, name)


def sentences(name: str, root: str | os.PathLike[str] | None = None) -> list[tuple[str, str]]:
    """All sentences of a data set with their intents; CLINC150 without its out-of-scope ones.

    Args:
        name: `"banking77"` or `"clinc150"`.
        root: the folder that holds `banking_data/` or `data/`; None: `$METAPEFT_DATA/text/<name>`.

    Raises:
        DataError: data that is missing.
    """
    folder = data_root(root, f"text/{name}")
    if name == "banking77":
        files = [folder / "banking_data" / f"{part}.csv" for part in ("train", "test")]
        _require(files)
        return [(row["text"], row["category"]) for file in files for row in _rows(file)]
    file = folder / "data" / "data_full.json"
    _require([file])
    parts = json.loads(file.read_text(encoding="utf-8"))
    return [(text, intent) for part in ("train", "val", "test") for text, intent in parts[part]]


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def _require(files: Sequence[Path]) -> None:
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} is missing: put the data set's folder as published at that place")


def first(rows: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """The first `count` sentences of each intent, in their order.

    Example:
        >>> first([("a", "x"), ("b", "x"), ("c", "y")], 1)
        [('a', 'x'), ('c', 'y')]
    """
    seen: Counter[str] = Counter()
    kept = []
    for text, intent in rows:
        seen[intent] += 1
        if seen[intent] <= count:
            kept.append((text, intent))
    return kept


def split_classes(classes: Sequence[str], held_out: tuple[int, int]) -> dict[str, list[str]]:
    """Intents of each split, by the order of the SHA-256 of their names: fixed, and with no author's choice.

    Args:
        classes: all intents. held_out: how many are for validation and for test.

    Example:
        >>> split_classes(["a", "b", "c", "d"], (1, 1))
        {'val': ['d'], 'test': ['c'], 'train': ['a', 'b']}
    """
    ordered = sorted(set(classes), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    val, test = held_out
    parts = {"val": ordered[:val], "test": ordered[val : val + test], "train": ordered[val + test :]}
    return {split: sorted(names) for split, names in parts.items()}

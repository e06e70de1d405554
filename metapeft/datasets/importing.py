"""A published data set, once, from whichever form it has to one store that is mapped into memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from metapeft.base.arguments import flag, whole
from metapeft.base.errors import DataError
from metapeft.base.suggestions import did_you_mean
from metapeft.datasets import few_shot_sets, miniimagenet, miniimagenet_rows
from metapeft.datasets.forms import stored
from metapeft.datasets.found import Found
from metapeft.datasets.images import SPLITS

_SETS = {"miniimagenet": 84, "cifar-fs": 32, "fc100": 32, "tieredimagenet": 84, "cub": 84}


def import_dataset(
    name: str,
    path: str | os.PathLike[str],
    to: str | os.PathLike[str] | None = None,
    *,
    size: int | None = None,
    complete: bool = True,
) -> dict[str, str]:
    """Check a data set in whichever form it lies at `path`, and write it to `to/store/`, whole or not at all.

    Afterwards `load_dataset(name, to)` maps the store into memory; the files at `path` are no longer needed.

    Args:
        name: `"miniimagenet"`, `"cifar-fs"`, `"fc100"`, `"tieredimagenet"` or `"cub"`.
        path: the folder that holds it; docs/data.md has the table of forms.
        to: the folder whose `store/` is written; None: `$METAPEFT_DATA/<name>`.
        size: height and width in pixels; None: 32 for sets of CIFAR, else 84.
        complete: False takes classes with fewer images than were published.

    Returns:
        Split -> the form that was found, in words.

    Raises:
        DataError: nothing is recognised, a split is missing, something is damaged or not what was published, or there
            is a store already; nothing is left behind.
        ValueError: for an unknown name or size.

    Example:
        >>> import_dataset("miniimagenet", "downloads/", "data/miniimagenet")  # doctest: +SKIP
        {'train': 'pickle', 'val': 'pickle', 'test': 'pickle'}
    """
    if name not in _SETS:
        raise ValueError(
            f"name={name!r} cannot be imported: allowed are {', '.join(_SETS)}{did_you_mean(str(name), _SETS)}"
        )
    flag(complete=complete)
    side = _SETS[name] if size is None else size
    whole(8, size=side)
    source, target = Path(path), _target(name, to)
    if not source.is_dir():
        raise DataError(f"there is no folder {source}: give the folder that holds the files of {name}")
    read = _reader(name, source, complete)
    parts = {split: read(split) for split in SPLITS}
    _check_apart(source, parts)
    with stored.made(target, name) as writer:
        for split, found in parts.items():
            writer.add(split, found.classes, found.labels, side, found.chunks(side))
    return {split: found.source.form for split, found in parts.items()}


def _reader(name: str, source: Path, complete: bool) -> Callable[[str], Found]:
    if name == "miniimagenet":
        return lambda split: miniimagenet.open_split(
            source, split, miniimagenet_rows.PER_CLASS if complete else None
        )
    return lambda split: few_shot_sets.open_split(name, source, split, complete)


def _target(name: str, to: str | os.PathLike[str] | None) -> Path:
    if to is not None:
        return Path(to)
    base = os.environ.get("METAPEFT_DATA", "")
    if not base:
        raise DataError(f"no place to write {name} to: give to=, or set METAPEFT_DATA to the folder for data")
    return Path(base) / name


def _check_apart(source: Path, parts: dict[str, Found]) -> None:
    owners: dict[str, str] = {}
    for split, found in parts.items():
        for name in found.classes:
            if name in owners:
                raise DataError(
                    f"{source}: class {name} is in two splits, {owners[name]} and {split}: few-shot splits share no "
                    "class; is a file in the wrong place, or is it a split of images, not of classes?"
                )
            owners[name] = split

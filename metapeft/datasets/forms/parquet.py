"""Parquet files as on the Hugging Face hub: encoded images in one column, their classes in another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metapeft.base.errors import DataError
from metapeft.datasets.forms.source import ALIASES, Content, Picture, Source, numbered

_LABELS = ("label", "fine_label", "labels", "class", "class_name")
_IMAGES = ("image", "img", "images")
_AT_ONCE = 200  # rows read together


def find(root: Path, split: str) -> Source | None:
    """The files of a split: `data/train-00000-of-00003.parquet`, `train/0000.parquet`, `train.parquet`."""
    for base in (root, root / "data", root / "default"):
        for alias in ALIASES[split]:
            for pattern in (f"{alias}.parquet", f"{alias}-*.parquet", f"{alias}/*.parquet"):
                files = tuple(sorted(file for file in base.glob(pattern) if file.is_file()))
                if files:
                    return Source("Parquet", files, lambda files=files: _content(files, split))  # type: ignore[misc]
    return None


def _content(files: Sequence[Path], split: str) -> Content:
    labels: list[str] = []
    order: list[str] = []
    columns = []
    for file in files:
        with _opened(file) as table:
            image, label, named = _columns(table, file)
            columns.append(image)
            with _damage(file):
                found = table.read(columns=[label]).column(label).to_pylist()
        if any(one is None for one in found):
            raise DataError(f"{file} has a row without {label}")
        if all(isinstance(one, str) for one in found):
            labels += found
        elif all(type(one) is int and 0 <= one < (len(named) if named else 1 << 31) for one in found):
            labels += numbered(found, split, named or None)
        else:
            raise DataError(f"{file}: column {label} must hold names or numbers of classes")
        order = named or order
    _check_parts(files)
    held = set(labels)
    return Content(labels, lambda: _pictures(files, columns), order=[name for name in order if name in held])


def _check_parts(files: Sequence[Path]) -> None:
    """`train-00000-of-00003.parquet` says how many files there are."""
    total = files[0].stem.rpartition("-of-")[2].partition("-")[0]
    if "-of-" in files[0].stem and total.isdigit() and int(total) != len(files):
        raise DataError(
            f"{files[0].parent} has {len(files)} of the {int(total)} files that {files[0].name} belongs to"
        )


def _pictures(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Picture]:
    for file, column in zip(files, columns):
        with _opened(file) as table, _damage(file):
            for batch in table.iter_batches(_AT_ONCE, columns=[column]):
                for row in batch.column(0).to_pylist():
                    content = row.get("bytes") if isinstance(row, dict) else row
                    if not isinstance(content, bytes):
                        raise DataError(
                            f"{file} has a row whose {column} holds no image itself, but a path or nothing"
                        )
                    yield content


def _columns(table: Any, file: Path) -> tuple[str, str, list[str]]:
    """The column of images, that of labels, and the names of the classes where the file's own description has them."""
    schema = table.schema_arrow
    image = next((name for name in _IMAGES if name in schema.names), None)
    label = next((name for name in _LABELS if name in schema.names), None)
    if image is None or label is None:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}: one of {', '.join(_IMAGES)} and one of "
            f"{', '.join(_LABELS)} are needed"
        )
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        names = []
    return image, label, [str(name) for name in names]


def _opened(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ImportError(f"reading {file} needs pyarrow: pip install 'metapeft[parquet]'") from None
    with _damage(file):
        return parquet.ParquetFile(file)


class _damage:
    """Pyarrow's errors as a sentence that names the file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError | MemoryError) and not isinstance(error, DataError):
            raise DataError(
                f"{self._file} is no whole Parquet file ({error}): was its download cut short? Fetch it again"
            ) from None

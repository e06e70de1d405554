"""Image files in a folder a class, whole or split into `train/`, `val/` and `test/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from metapeft.base.errors import DataError
from metapeft.datasets.forms.source import ALIASES, Content, Picture, Source

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def is_shown(path: Path) -> bool:
    """Not one of the hidden files and folders that systems and editors leave, such as `.ipynb_checkpoints`."""
    return not path.name.startswith(".")


def is_image(path: Path) -> bool:
    """A file whose name says that it is an image."""
    return path.suffix.lower() in SUFFIXES and is_shown(path)


def subfolders(folder: Path) -> list[Path]:
    """The folders right below, by name, without the hidden ones."""
    return sorted(path for path in folder.iterdir() if is_shown(path) and path.is_dir())


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder, where a folder holds `train/`, `val/` (or `valid/`, `validation/`) and `test/`.

    Empty where it holds folders of other names too, such as a class that happens to be called `test`, or only one.
    """
    below = {path.name.lower(): path for path in subfolders(root)}
    found = {split: below[name] for split, names in ALIASES.items() for name in names if name in below}
    holds = [split for split, folder in found.items() if subfolders(folder)]
    return found if len(holds) >= 2 and len(found) == len(below) else {}


def find(
    root: Path, split: str, folders: Sequence[str] = (), split_of: Callable[[str], str | None] | None = None
) -> Source | None:
    """The class folders of a split below `root` or one of its `folders`; None where there are none.

    Args:
        root: where to look.
        split: `"train"`, `"val"` or `"test"`.
        folders: below the root, where the data set's archive puts its class folders.
        split_of: name of a class -> its split, for folders that are not split; None knows no such list.
    """
    for base in (root, *(root / folder for folder in folders)):
        if not base.is_dir():
            continue
        parts = split_folders(base)
        if parts:
            check_disjoint(parts)
            classes = subfolders(parts[split]) if split in parts else []
        else:
            classes = [path for path in subfolders(base) if split_of and split_of(path.name) == split]
        if classes:
            return _source(classes)
    return None


def check_disjoint(parts: Mapping[str, Path]) -> None:
    """Raise DataError for a class that has a folder in two splits."""
    owners: dict[str, Path] = {}
    for folder in parts.values():
        for path in subfolders(folder):
            if path.name in owners:
                raise DataError(
                    f"class {path.name} stands in {owners[path.name]} and in {folder}: few-shot splits share no class; "
                    f"to draw splits of the classes of one folder, give root={folder}"
                )
            owners[path.name] = folder


def _source(classes: Sequence[Path]) -> Source:
    files = [(folder.name, file) for folder in classes for file in sorted(filter(is_image, folder.iterdir()))]

    def pictures() -> Iterator[Picture]:
        yield from (file for _, file in files)

    def content() -> Content:
        return Content([name for name, _ in files], pictures, [file.name for _, file in files])

    return Source("class folders", tuple(file for _, file in files), content)

"""The three forms in which people have Omniglot on disk: folders, the two original zips, torchmeta's HDF5."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from metapeft.base.errors import DataError
from metapeft.base.reading import check_file, reading
from metapeft.datasets.decoding import opened
from metapeft.datasets.store import Images, data_root, signature

SETS = ("images_background", "images_evaluation")
DRAWINGS = 20  # of a character
_MOST_DRAWINGS = 1000  # of a character, in a file that says how many there are
_LARGEST = 2**20  # bytes of a drawing in a zip file
ADDRESS = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
# Of the zip files, as TensorFlow Datasets (url_checksums/omniglot.txt) and torchvision's prototypes state them.
SHA256 = {
    "images_background": "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    "images_evaluation": "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
}


class Source(Protocol):
    """One form of the data: characters by path, such as `images_background/Latin/character01`."""

    @property
    def identity(self) -> str:
        """Changes when the data does."""

    @property
    def counts(self) -> dict[str, int]:
        """Path of each character -> its number of drawings."""

    @property
    def names(self) -> Mapping[str, list[str]]:
        """Path of each character -> the sorted names of its files; empty for a form without files."""

    @property
    def zips(self) -> Mapping[str, Path]:
        """Part -> its zip file; empty for other forms."""

    @property
    def remedy(self) -> str:
        """What to do about data that is not the published one: a sentence."""

    def read(self, path: str) -> Images:
        """The drawings of one character in the order of their names, `(drawings, 105, 105)`, ink 255."""


def open_source(root: str | os.PathLike[str] | None, download: bool) -> Source:
    """Whichever form lies in `root`; raises DataError that says what to put where if there is none."""
    if download:
        folder = _download_folder(root)
        found = _find(folder)
        if found is None:
            _download(folder)
            found = Zips(folder)
        return found
    folder = data_root(root, "omniglot-py")
    found = _find(folder)
    if found is None:
        raise DataError(
            f"no Omniglot in {folder}: it must hold {SETS[0]}/ and {SETS[1]}/ (unpacked), or {SETS[0]}.zip "
            f"and {SETS[1]}.zip from {ADDRESS}, or torchmeta's data.hdf5; download=True fetches the zip files"
        )
    return found


def _find(folder: Path) -> Source | None:
    if all((folder / name).is_dir() for name in SETS):
        return Folders(folder)
    if all((folder / f"{name}.zip").is_file() for name in SETS):
        return Zips(folder)
    for file in (folder / "data.hdf5", folder / "omniglot" / "data.hdf5"):
        if file.is_file():
            return Torchmeta(file)
    return None


def check(source: Source, characters: Sequence[str], drawings: int) -> None:
    """Raises DataError unless the source has exactly these characters, each with so many drawings."""
    counts = source.counts
    missing = [path for path in characters if path not in counts]
    if missing:
        raise DataError(
            f"Omniglot is incomplete: {len(missing)} of {len(characters)} characters are missing, "
            f"the first is {missing[0]}; unpack both zip files again"
        )
    foreign = sorted(set(counts) - set(characters))
    if foreign:
        raise DataError(
            f"Omniglot has {len(foreign)} characters too many, the first is {foreign[0]}; remove them"
        )
    for path in characters:
        if counts[path] != drawings:
            raise DataError(
                f"Omniglot is incomplete: {path} has {counts[path]} drawings instead of {drawings}"
            )


class Folders:
    """`images_background/Alphabet/character01/0001_01.png`, as torchvision unpacks it."""

    zips: Mapping[str, Path] = {}

    def __init__(self, folder: Path) -> None:
        self.remedy = (
            f"Unpack the zip files from {ADDRESS} again; drawings of your own are read by data set 'folder'"
        )
        self._files = {
            "/".join(character.parts[-3:]): _pictures(character)
            for name in SETS
            for alphabet in sorted(filter(Path.is_dir, (folder / name).iterdir()))
            for character in sorted(filter(Path.is_dir, alphabet.iterdir()))
        }
        self.counts = {path: len(files) for path, files in self._files.items()}
        self.names = {path: [*map(os.path.basename, files)] for path, files in self._files.items()}
        self.identity = signature(file for files in self._files.values() for file in files)

    def read(self, path: str) -> Images:
        """See `Source.read`."""
        return np.stack([_ink(file, file) for file in self._files[path]])


class Zips:
    """`images_background.zip` and `images_evaluation.zip`, read in place."""

    def __init__(self, folder: Path) -> None:
        self.zips = {name: folder / f"{name}.zip" for name in SETS}
        self.remedy = f"Delete the zip file and fetch it again from {ADDRESS}"
        self.identity = signature(self.zips.values())
        self._archives = {name: _open_zip(file) for name, file in self.zips.items()}
        self._members: dict[str, list[str]] = {}
        for part, archive in self._archives.items():
            for member in sorted(archive.namelist()):
                if member.startswith(f"{part}/") and member.endswith(".png"):
                    self._members.setdefault(member.rpartition("/")[0], []).append(member)
        self.counts = {path: len(members) for path, members in self._members.items()}
        self.names = {
            path: [member.rpartition("/")[2] for member in members] for path, members in self._members.items()
        }

    def read(self, path: str) -> Images:
        """See `Source.read`."""
        archive = self._archives[path.split("/")[0]]
        try:
            return np.stack([_ink(io.BytesIO(_member(archive, name)), name) for name in self._members[path]])
        except DataError:
            raise
        except Exception as error:  # of zipfile, of each method of compression, of the system
            raise DataError(
                f"{archive.filename} is damaged at {path} ({error}): fetch it again from {ADDRESS}"
            ) from None


class Torchmeta:
    """torchmeta's `data.hdf5`: a uint8 array `(20, 105, 105)` for each character, ink 255."""

    names: Mapping[str, list[str]] = {}
    zips: Mapping[str, Path] = {}
    remedy = "Make data.hdf5 again with torchmeta"

    def __init__(self, file: Path) -> None:
        try:
            import h5py
        except ImportError:
            raise ImportError(f"reading {file} needs h5py: pip install 'metapeft[data]'") from None
        self.identity = signature([file])
        self.counts: dict[str, int] = {}
        with reading(file, DataError, "it is no whole HDF5 file, make it again with torchmeta"):
            check_file(file)
            self._file = h5py.File(file, "r")
            self._file.visititems(self._count)

    def _count(self, path: str, node: Any) -> None:
        if hasattr(node, "shape"):
            if node.shape[1:] != (105, 105) or node.dtype != np.uint8 or node.shape[0] > _MOST_DRAWINGS:
                raise DataError(
                    f"{path} in data.hdf5 must be uint8 (20, 105, 105), not {node.dtype} {node.shape}"
                )
            self.counts[path] = node.shape[0]

    def read(self, path: str) -> Images:
        """See `Source.read`."""
        with reading(self._file.filename, DataError, "make it again with torchmeta"):
            return np.asarray(self._file[path])


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A drawing in a zip file, which says how large it is."""
    if archive.getinfo(name).file_size > _LARGEST:
        raise DataError(
            f"{archive.filename} says that {name} is larger than any drawing: fetch it again from {ADDRESS}"
        )
    return archive.read(name)


def _open_zip(file: Path) -> zipfile.ZipFile:
    try:
        check_file(file)
        return zipfile.ZipFile(file)
    except Exception:  # zipfile has more than one kind for a damaged directory
        raise DataError(
            f"{file} is no whole zip file ({file.stat().st_size} bytes; a broken download?): delete it and "
            f"fetch it again from {ADDRESS}/{file.name}"
        ) from None


def _pictures(folder: Path) -> list[str]:
    """Paths of its PNG files, by name; strings, since there are 32,460 of them."""
    base = os.fspath(folder)
    return sorted(os.path.join(base, name) for name in os.listdir(base) if name.endswith(".png"))


def _ink(file: str | io.BytesIO, name: str) -> Images:
    with opened(file, name, "unpack Omniglot again") as image:
        drawing = 255 - np.asarray(image.convert("L"))
    if drawing.shape != (105, 105):
        raise DataError(f"{name} must have 105x105 pixels, not {drawing.shape[1]}x{drawing.shape[0]}")
    return drawing


def _download_folder(root: str | os.PathLike[str] | None) -> Path:
    if root is None and not os.environ.get("METAPEFT_DATA"):
        raise DataError("download=True needs a place to write to: give root=, or set METAPEFT_DATA")
    folder = Path(root) if root is not None else Path(os.environ["METAPEFT_DATA"]) / "omniglot-py"
    return data_root(folder, "omniglot-py") if folder.is_dir() else folder


def _download(folder: Path) -> None:
    try:
        import pooch
    except ImportError:
        raise ImportError("download=True needs pooch: pip install 'metapeft[data]'") from None
    for name, sha256 in SHA256.items():
        url = f"{ADDRESS}/{name}.zip"
        try:
            pooch.retrieve(url, f"sha256:{sha256}", fname=f"{name}.zip", path=folder, progressbar=False)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot fetch {url} to {folder} ({error})") from error

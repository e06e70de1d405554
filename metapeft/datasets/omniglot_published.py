"""Omniglot as it was published: its zip files, the names of its files, and the pixels of its drawings."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metapeft.base.errors import DataError
from metapeft.datasets.omniglot_files import ADDRESS, DRAWINGS, SETS, SHA256, Source
from metapeft.datasets.published import SHORT, lines_hash, table
from metapeft.datasets.store import Images

Hashes = Mapping[str, tuple[str, str]]


@functools.cache
def hashes(characters: tuple[str, ...]) -> Hashes | None:
    """Part or alphabet -> SHA-256 of its file names and of its drawings; None for a list of characters that
    is not the published one, with which nothing can be compared.

    The hashes of the two parts are whole; the first digits for each alphabet say where a difference lies.
    """
    stored = table("omniglot")["sha256"]
    if lines_hash(characters) != stored["characters"]:
        return None
    return {name: (files, drawings) for name, (files, drawings) in stored["files, drawings"].items()}


class Digests:
    """SHA-256 of each part and of each alphabet, of whatever is added for their characters in order."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def add(self, path: str, content: bytes) -> None:
        """What is to be hashed for one character, such as `images_background/Latin/character01`."""
        part, alphabet, _ = path.split("/")
        for name in (part, f"{part}/{alphabet}"):
            self._found.setdefault(name, hashlib.sha256()).update(content)

    def hexadecimal(self) -> dict[str, str]:
        """Part or alphabet -> 64 digits."""
        return {name: digest.hexdigest() for name, digest in self._found.items()}


def name_digests(source: Source, characters: Sequence[str]) -> dict[str, str]:
    """Digests of the names of all files, `part/Alphabet/character01/0709_01.png`, a line each."""
    digests = Digests()
    for path in characters:
        digests.add(path, "".join(f"{path}/{name}\n" for name in source.names[path]).encode())
    return digests.hexadecimal()


def bits(path: str, drawings: Images, remedy: str) -> bytes:
    """Drawings in one bit a pixel, ink 1; raises DataError where there are greys."""
    ink = drawings == 255
    if not (ink | (drawings == 0)).all():
        raise DataError(
            f"Omniglot's drawings are black on white, but those of {path} have greys; were they saved in "
            f"another format? {remedy}"
        )
    return np.packbits(ink).tobytes()


@functools.cache
def orders() -> dict[str, list[int]]:
    """Character -> the place that each of its published drawings takes when all are sorted by their bits."""
    return {
        f"{alphabet}/character{number // DRAWINGS + 1:02d}": [
            ord(c) - ord("a") for c in places[number:][:DRAWINGS]
        ]
        for alphabet, places in table("omniglot-order").items()
        for number in range(0, len(places), DRAWINGS)
    }


def in_order(path: str, drawings: Images) -> Images:
    """The drawings of a character in the order of their published names.

    torchmeta stores them in the order in which a folder happens to list its files.
    """
    by_bits = sorted(range(len(drawings)), key=lambda place: np.packbits(drawings[place] == 255).tobytes())
    return drawings[[by_bits[place] for place in orders()[path]]]


def check_zips(source: Source) -> None:
    """Raises DataError for zip files that are not, bit for bit, the published ones."""
    for part, file in source.zips.items():
        with open(file, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != SHA256[part]:
            raise DataError(
                f"{file} is not the published file: its SHA-256 is {found} instead of {SHA256[part]}; delete it and "
                f"fetch it again from {ADDRESS}/{part}.zip, or unpack it if you packed it yourself"
            )


def check_names(source: Source, characters: Sequence[str], published: Hashes) -> None:
    """Raises DataError unless every file has its published name: the character's number and the drawer's."""
    if not source.names:  # a form without files
        return
    for path in characters:
        number = source.names[path][0][:4]
        for drawer, name in enumerate(source.names[path], 1):
            if not re.fullmatch(r"\d{4}", number) or name != f"{number}_{drawer:02d}.png":
                raise DataError(
                    f"Omniglot has a file {path}/{name} where the number of the character, the same 4 digits "
                    f"20 times, and _{drawer:02d}.png was published; was it renamed or moved? {source.remedy}"
                )
    found = name_digests(source, characters)
    _compare(found, {name: files for name, (files, _) in published.items()}, "names of the files", source)


def checked(
    source: Source, characters: Sequence[str], published: Hashes | None
) -> Iterator[tuple[str, Images]]:
    """Each character and its drawings; at the end, DataError unless the drawings are the published ones."""
    if published is not None:
        check_zips(source)
    digests = Digests()
    for path in characters:
        drawings = source.read(path)
        if published is not None:
            if not source.names:
                drawings = in_order(path, drawings)
            digests.add(path, bits(path, drawings, source.remedy))
        yield path, drawings
    if published is not None:
        expected = {name: drawings for name, (_, drawings) in published.items()}
        _compare(digests.hexadecimal(), expected, "pixels of the drawings", source)


def _compare(found: Mapping[str, str], expected: Mapping[str, str], what: str, source: Source) -> None:
    for part in SETS:
        if found[part] == expected[part]:
            continue
        alphabets = [name for name in found if name.startswith(f"{part}/")]
        other = [name for name in alphabets if found[name][:SHORT] != expected[name]]
        raise DataError(
            f"Omniglot's {what} of {part} are not the published ones: their SHA-256 is {found[part]} instead "
            f"of {expected[part]}; {len(other)} of {len(alphabets)} alphabets differ, the first is "
            f"{other[0]}; were files changed or exchanged? {source.remedy}"
        )

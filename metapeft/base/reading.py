"""The edge at which files become values: whatever a reader raises becomes one sentence with the file's name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from metapeft.base.errors import DataError, RunError

SEAL = "sha256"  # the last entry of an object of JSON, which says what the others were
MARK = "sealed"  # the first one, so that no piece that is cut out can take both along and leave the rest
MOST_JSON = 2**28  # bytes
_DIGEST = re.compile(r"[0-9a-f]{64}")


@contextmanager
def reading(
    path: str | os.PathLike[str], raised: type[ValueError] = RunError, again: str = ""
) -> Iterator[None]:
    """What is done inside turns a file into values; whatever that raises becomes one sentence.

    Args:
        path: the file, which the sentence names. raised: the kind of the error.
        again: what to do about it, said last where the file is there.

    Example:
        >>> with reading("list.json", DataError, "write it again"):
        ...     json.loads("[" * 100_000)
        Traceback (most recent call last):
        metapeft.base.errors.DataError: list.json cannot be read: it nests too deep; write it again
    """
    try:
        yield
    except (DataError, RunError):
        raise
    except Exception as error:
        end = f"; {again}" if again and not isinstance(error, FileNotFoundError) else ""
        raise raised(f"{os.fspath(path)} cannot be read: {_reason(error)}{end}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror or error)
    if isinstance(error, RecursionError):
        return "it nests too deep"
    if isinstance(error, UnicodeDecodeError):
        return f"it is no text in UTF-8 (byte {error.start})"
    if isinstance(error, MemoryError):
        return "it says that it is larger than this machine's memory"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first if len(first) <= 300 else f"{first[:300]}..."


def check_file(path: str | os.PathLike[str], most: int | None = None) -> int:
    """The size of a file in bytes; OSError or ValueError for what is none, such as a pipe, or is too large."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file, but a pipe, a socket or a device")
    if most is not None and found.st_size > most:
        raise ValueError(f"it has {found.st_size} bytes, more than the {most} that are read")
    return found.st_size


def read_json(
    path: str | os.PathLike[str], raised: type[ValueError] = RunError, again: str = "", unseal: bool = True
) -> Any:
    """What a file of JSON holds, each name once; where `sealed` wrote it, it must be what was written.

    Args:
        path, raised, again: as in `reading`. unseal: False leaves that to the caller, who knows better reasons.

    Raises:
        RunError: (or `raised`) a file that is missing, no JSON, names something twice, nests too deep, is too large, or
            was changed.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        ...     _ = file.write('{"a": 1, "a": 2}'), file.flush()
        ...     try:
        ...         read_json(file.name)
        ...     except RunError as error:
        ...         print(str(error).partition(" cannot ")[2])
        be read: it has 'a' twice
    """
    with reading(path, raised, again):
        check_file(path, MOST_JSON)
        found = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_once)
        return unsealed(found) if unseal else found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object of JSON, with the SHA-256 of the rest of it as its last entry, and a first one that says so.

    Example:
        >>> unsealed(sealed({"ways": 5}))
        {'ways': 5}
    """
    return {MARK: True, **content, SEAL: _digest(content)}


def unsealed(content: Any) -> Any:
    """The object without its seal; ValueError where it is not what was sealed. One without a seal is taken as it is."""
    if not isinstance(content, dict):
        return content
    rest = dict(content)
    mark, said = rest.pop(MARK, None), rest.pop(SEAL, None)
    if mark is None and said is None and not any(map(_is_seal, rest.items())):
        return rest
    if mark is not True or said != _digest(rest):
        raise ValueError(
            f"it is not what was written: its SHA-256 is another one. It was damaged, or changed by hand; then its "
            f"entries {MARK!r} and {SEAL!r} have to be removed too"
        )
    return rest


def _is_seal(entry: tuple[str, Any]) -> bool:
    """Whether an entry looks like one of the two under a damaged name."""
    name, value = entry
    alike = max(SequenceMatcher(None, name, own).ratio() for own in (SEAL, MARK))
    return alike > 0.75 and (
        value is True or (isinstance(value, str) and _DIGEST.fullmatch(value) is not None)
    )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""The C++ sources as a shared library, compiled for this machine and kept in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from metapeft.base.files import cache_folder, replacing
from metapeft.base.machine.processor import processor_abilities

log = logging.getLogger("metapeft")

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_COMPILERS = ("g++", "c++")
_HERE = Path(__file__).parent
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def library() -> Path:
    """The library for these sources and this processor, compiled if it is not there yet.

    It lies in `$XDG_CACHE_HOME/metapeft`, by default `~/.cache/metapeft`, and can be deleted at any time. One that is
    damaged, or that others may have written, is compiled again.

    Raises:
        OSError: no C++ compiler, one that fails (the message ends with what it said), a folder that cannot be written,
            or that belongs to somebody else.
    """
    key = _key()
    path = cache_folder() / f"kernels-{key[:16]}.so"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _own(path.parent)
    if not _is_ours(path, key):
        log.info("compiling kernels into %s", path)
        _compile(path, key)
    return path


def _own(folder: Path) -> None:
    """Take a folder's permissions from others; OSError for another user's, who could exchange files in it."""
    if not hasattr(os, "getuid"):
        return
    found = os.stat(folder)
    if found.st_uid != os.getuid():
        raise OSError(
            f"compiled kernels: {folder} belongs to another user, who could put any program there: set XDG_CACHE_HOME "
            "to a folder of your own"
        )
    if found.st_mode & _OTHERS:
        os.chmod(folder, stat.S_IMODE(found.st_mode) & ~_OTHERS)


def _is_ours(path: Path, key: str) -> bool:
    """Whether a file is what `_compile` wrote for this key, byte for byte, and nobody else's or for others to write."""
    try:
        found = os.stat(path, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return False
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & _OTHERS):
            return False
        content = path.read_bytes()
    except OSError:
        return False
    size = len(_trailer(b"", key))
    return len(content) > size and content[-size:] == _trailer(content[:-size], key)


def _trailer(content: bytes, key: str) -> bytes:
    """What stands behind the library, where nothing reads it: what it was made of, and its own SHA-256."""
    return f"\nmetapeft {key} {hashlib.sha256(content).hexdigest()}\n".encode()


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, else g++ or c++; None where there is none. GCC is what the sources are written for."""
    asked = os.environ.get("CXX")
    return shutil.which(asked) if asked else next(filter(None, map(shutil.which, _COMPILERS)), None)


def _compile(path: Path, key: str) -> None:
    found = compiler()
    if found is None:
        asked = os.environ.get("CXX")
        missing = f"$CXX, {asked!r}, is no program" if asked else f"there is no {' and no '.join(_COMPILERS)}"
        raise OSError(
            f"compiled kernels need a C++ compiler, and {missing} here: install g++ 12 or newer, or leave them out"
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        sources = sorted(map(str, _HERE.glob("*.cpp")))
        done = subprocess.run(
            [found, *_FLAGS, *sources, "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
            raise OSError(f"compiled kernels: {found} failed: {said}")
        content = made.read_bytes()
        with replacing(path) as file:  # another process may be at the same: each puts a whole file there
            os.chmod(file.fileno(), 0o700)
            file.write(content + _trailer(content, key))


def _key() -> str:
    """What the library is made for, as a name: sources, flags, and what the processor can do."""
    parts = [path.read_bytes() for path in sorted(_HERE.glob("*.?pp"))]
    parts += [" ".join(_FLAGS).encode(), processor_abilities().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()

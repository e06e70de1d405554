"""The C++ sources as a shared library, compiled for this machine and kept in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from metapeft.base.files import cache_folder
from metapeft.base.machine.processor import processor_abilities

log = logging.getLogger("metapeft")

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_COMPILERS = ("g++", "c++")
_HERE = Path(__file__).parent


def library() -> Path:
    """The library for these sources and this processor, compiled if it is not there yet.

    It lies in `$XDG_CACHE_HOME/metapeft`, by default `~/.cache/metapeft`, and can be deleted at any time.

    Raises:
        OSError: no C++ compiler, one that fails (the message ends with what it said), a folder that cannot be written.
    """
    path = cache_folder() / f"kernels-{_key()}.so"
    if not path.exists():
        log.info("compiling kernels into %s", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(path)
    return path


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, else g++ or c++; None where there is none. GCC is what the sources are written for."""
    asked = os.environ.get("CXX")
    return shutil.which(asked) if asked else next(filter(None, map(shutil.which, _COMPILERS)), None)


def _compile(path: Path) -> None:
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
        os.replace(made, path)  # another process may be at the same: each puts a whole file there


def _key() -> str:
    """What the library is made for, as a name: sources, flags, and what the processor can do."""
    parts = [path.read_bytes() for path in sorted(_HERE.glob("*.?pp"))]
    parts += [" ".join(_FLAGS).encode(), processor_abilities().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

"""What was built holds what it should: `python -m tests.built dist/*.whl dist/*.tar.gz`."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: what a wheel has no place for
OUTSIDE = ("tests/", "benchmarks/", "docs/")


def names(archive: Path) -> set[str]:
    """The files of an archive, of a source distribution without its first folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as file:
        return {name.partition("/")[2] for name in file.getnames()}


def faults(archive: Path, kept: list[str]) -> list[str]:
    """What of the two packages is missing in an archive, and what of the repository has no place in it."""
    found = names(archive)
    missing = [f"{archive.name} lacks {name}" for name in kept if name not in found]
    return missing + [f"{archive.name} has {name}" for name in sorted(found) if name.startswith(OUTSIDE)]


if __name__ == "__main__":
    listed = subprocess.run(
        ["git", "ls-files", "metapeft", "theory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wrong = [fault for given in sys.argv[1:] for fault in faults(Path(given), listed.stdout.split())]
    sys.exit("\n".join(wrong) or 0)

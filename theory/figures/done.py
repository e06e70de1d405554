"""Files of figures, each whole or not there, and what of them need not be computed again."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from metapeft.base.files import write_atomically
from metapeft.base.reading import read_json, sealed
from metapeft.base.version import __version__
from theory.figures import rows
from theory.figures.rows import Row


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure in the format that the name ends with."""
    file = io.BytesIO()
    figure.savefig(file, format=path.suffix[1:], **options)
    write_atomically(path, file.getvalue())


class Done:
    """The figures whose data a command has computed, in `.done.json` beside them.

    Args:
        out: the folder. protocol, seed: of the command; others have other data. resume: whether to read it.
    """

    def __init__(self, out: Path, protocol: str, seed: int, resume: bool) -> None:
        self.out, self.file = out, out / ".done.json"
        self.made_by = {"protocol": protocol, "seed": seed, "version": __version__}
        self.digests: dict[str, str] = {}
        if resume and self.file.exists():
            found = read_json(self.file)
            if isinstance(found, dict) and found.get("made_by") == self.made_by:
                self.digests = dict(found["digests"])

    def rows(self, name: str, stem: str) -> list[Row] | None:
        """The data of a figure; None where it has to be computed."""
        path = self.out / f"{stem}.csv"
        if name not in self.digests or not path.is_file() or _digest(path) != self.digests[name]:
            return None
        return rows.read(path)

    def add(self, name: str, stem: str) -> None:
        """Note that a figure is written."""
        self.digests[name] = _digest(self.out / f"{stem}.csv")
        content = sealed({"made_by": self.made_by, "digests": self.digests})
        write_atomically(self.file, (json.dumps(content, indent=1) + "\n").encode())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""A run folder among ranks: rank 0 writes, the others read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metapeft.base.machine.processes import Processes
from metapeft.training.runs.run import Run


class Followed(Run):
    """The folder as the other ranks see it: what they would write, rank 0 writes."""

    def log(self, step: int, **values: Any) -> None:
        """Nothing."""

    def truncate(self, step: float) -> None:
        """Nothing."""

    def save(self, name: str, tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Nothing."""


def created(folder: str | os.PathLike[str], config: Mapping[str, Any], processes: Processes) -> Run:
    """`Run.create` on rank 0, the same folder to read on the others; what is refused is refused on all."""
    return _on_rank_0(lambda: Run.create(folder, config), folder, processes)


def opened(folder: str | os.PathLike[str], processes: Processes) -> Run:
    """`Run.open` on rank 0, the same folder to read on the others."""
    return _on_rank_0(lambda: Run.open(folder), folder, processes)


def exists(folder: str | os.PathLike[str], processes: Processes) -> bool:
    """Whether the folder holds a run, as rank 0 sees it."""
    return bool(processes.decided(lambda: (Path(folder) / "config.json").exists()))


def _on_rank_0(make: Any, folder: str | os.PathLike[str], processes: Processes) -> Run:
    made: list[Run] = []
    processes.decided(lambda: made.append(make()))
    return made[0] if made else Followed.open(folder, writable=False)

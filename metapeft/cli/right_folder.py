"""A folder that is no run of the kind that a command wants: which one near it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from metapeft.base.errors import RunError

Kind = Literal["job", "learner"]
_MOST, _SHOWN = 500, 6  # folders looked at, and named


@contextmanager
def run_wanted(run: Path, kind: Kind) -> Iterator[None]:
    """Where the run cannot be read because it is another folder, the RunError also says which may be meant."""
    try:
        yield
    except RunError as error:
        said = {word.rstrip(",;:") for word in str(error).split()}
        found = [] if kind_of(run) == kind else [path for path in near(run, kind) if str(path) not in said]
        if not found:
            raise
        more = ", ..." if len(found) > _SHOWN else ""
        raise RunError(f"{error}; did you mean {' or '.join(map(str, found[:_SHOWN]))}{more}?") from error


def near(run: Path, kind: Kind) -> list[Path]:
    """Runs of a kind below a folder, else above it, else beside it.

    Args:
        run: need not exist. kind: "job", a folder of train or bench; "learner", one of those in it.
    """
    below = _within(run, 3)
    beside = _within(run.parent, 2) if run.parent.is_dir() else iter(())
    for candidates in (below, iter(run.parents), beside):
        found = [path for path in itertools.islice(candidates, _MOST) if kind_of(path) == kind]
        if found:
            return found[:1] if candidates is not below and candidates is not beside else sorted(found)
    return []


def kind_of(folder: Path) -> Kind | None:
    """What a folder is, by its settings; None where it is neither, or cannot be read."""
    try:
        stored: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict):
        return None
    if isinstance(stored.get("train"), dict):
        return "job"
    learner = stored.get("learner")
    return "learner" if isinstance(learner, dict) and "formats" in learner else None


def _within(folder: Path, depth: int) -> Iterator[Path]:
    """The folders below one, the nearer ones first; none of those that begin with a dot."""
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    yield from inner
    if depth > 1:
        for path in inner:
            yield from _within(path, depth - 1)

"""What a job's folder holds already of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metapeft.base.errors import RunError
from metapeft.base.reading import read_json
from metapeft.training.runs.checkpoint import metadata


def made_before(folder: Path, methods: Mapping[str, Any]) -> list[str]:
    """A word about each stage of which something is kept, which a call that goes on does not do again.

    Args:
        methods: name -> row of the method table.

    Example:
        >>> made_before(Path("nowhere"), {})
        []
    """
    found = []
    for stage in ("sr", "sr-continued"):
        if (folder / stage / "done.safetensors").exists():
            found.append(stage)
        else:
            found += _begun(stage, folder / stage / "run")
    for name, method in methods.items():
        if method.trains and method.control_of is None:
            found += _begun(name, folder / name)
    return found


def _begun(name: str, run: Path) -> list[str]:
    """The steps of one run, as its latest checkpoint says them."""
    latest = run / "checkpoints" / "latest.safetensors"
    try:
        made, total = metadata(latest)["step"], read_json(run / "config.json")["fit"]["steps"]
    except (RunError, KeyError, TypeError):
        return []
    if not made:
        return []
    return [name if made == total else f"{name} up to step {made} of {total}"]

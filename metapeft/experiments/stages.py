"""What a job's folder holds already of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metapeft.base.errors import RunError
from metapeft.base.reading import read_json
from metapeft.training.runs.checkpoint import metadata


def made_before(folder: Path, methods: Mapping[str, Any]) -> dict[str, str]:
    """Each stage of which something is kept, which a call that goes on does not do again -> how far, "" for all of it.

    Args:
        methods: name -> row of the method table.

    Example:
        >>> made_before(Path("nowhere"), {})
        {}
    """
    found: dict[str, str | None] = {}
    for stage in ("sr", "sr-continued"):
        done = (folder / stage / "done.safetensors").exists()
        found[stage] = "" if done else _begun(folder / stage / "run")
    for name, method in methods.items():
        if method.trains and method.control_of is None:
            found[name] = _begun(folder / name)
    return {name: far for name, far in found.items() if far is not None}


def _begun(run: Path) -> str | None:
    """The steps of one run, as its latest checkpoint says them; None for none."""
    latest = run / "checkpoints" / "latest.safetensors"
    try:
        made, total = metadata(latest)["step"], read_json(run / "config.json")["fit"]["steps"]
    except (RunError, KeyError, TypeError):
        return None
    if not made:
        return None
    return "" if made == total else f" up to step {made} of {total}"

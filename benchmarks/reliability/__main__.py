"""Reliability, measured: 100 kills, disks and processes that get in the way, and a soak.

    python -m benchmarks.reliability [--only kills faults soak] [--works train export ...] [--minutes 20] [--json FILE]

What the file has already is not done again, kill by kill, and several processes may measure at once; remove a part from
it to measure that anew. Faults of disks need the right to mount a file system.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from filelock import FileLock

from benchmarks.reliability import faults, kills, soak
from benchmarks.reliability.children import Child
from benchmarks.reliability.work import WORKS, raw_pictures
from metapeft.base.files import write_atomically
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parents[1] / "results" / "reliability.json"
PARTS = ("kills", "faults", "soak")


@app.default
def main(
    *,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = PARTS,
    works: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = tuple(WORKS),
    minutes: float = 20.0,
    json_file: Annotated[Path, Parameter(name="--json")] = RESULTS,
) -> None:
    """Measure what is not measured yet.

    Args:
        only: parts. works: kinds of work that are killed. minutes: of the soak, at least.
        json_file: where the results go.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        raw_pictures(place / "raw")
        for name in works if "kills" in only else ():
            keep = functools.partial(kept, json_file, "kills", name)
            row = read(json_file)["kills"].get(name, {})
            keep(kills.killed(name, place, row, keep))
            print(f"kills, {name}", flush=True)
        for name in works if "faults" in only else ():
            if name not in read(json_file)["faults"]:
                kept(json_file, "faults", name, faults.tried(name, place))
                print(f"faults, {name}", flush=True)
        if "soak" in only and "seconds" not in read(json_file)["soak"]:
            result = place / "soak.json"
            child = Child(functools.partial(_soak, place / "soak", minutes, result), place / "soak.said")
            if child.wait(60 * (minutes + 120)) != 0:
                raise SystemExit(f"the soak failed: {child.says()}")
            for name, value in json.loads(result.read_text(encoding="utf-8")).items():
                kept(json_file, "soak", name, value)


def read(file: Path) -> dict[str, Any]:
    """What is measured already; parts may be measured by several processes at once."""
    if not file.exists():
        return {
            "command": "python -m benchmarks.reliability",
            "environment": environment(),
            **{p: {} for p in PARTS},
        }
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def kept(file: Path, part: str, name: str, value: Any) -> None:
    """Put one number of results into the file."""
    with FileLock(Path(tempfile.gettempdir()) / f"{file.name}.lock"):
        found = read(file)
        found[part][name] = value
        write_atomically(file, (json.dumps(found, indent=1) + "\n").encode())


def _soak(folder: Path, minutes: float, result: Path) -> None:
    result.write_text(json.dumps(soak.soak(folder, minutes)), encoding="utf-8")


if __name__ == "__main__":
    app()

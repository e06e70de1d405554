"""The matrix of architectures: which real models run under updates, each against plain torch.

    python -m benchmarks.models [--library L] [--only GLOB] [--again]    check what has no result, write the page
    python -m benchmarks.models page                          write docs/models.md from the results

Each group runs in a process of its own, which writes a line a model: where one ends a process, its name is known, and
the others go on. A run that is broken off goes on where it was.
"""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from benchmarks.models.matrix import LIBRARIES, cases, groups
from benchmarks.models.page import PAGE, RESULTS, page, read
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
LIMIT = 1800  # seconds of a group


@app.command
def group(library: str, name: str, out: Path, *, skip: list[str] | None = None) -> None:
    """Check the models of one group, a line each; what a parent process starts."""
    import torch

    from benchmarks.models.check import check

    torch.set_num_threads(1)
    for case in groups(library)[name]:
        if case.name in (skip or []):
            continue
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"begun": case.name}) + "\n")
            file.flush()
            file.write(json.dumps(check(case)) + "\n")
            print(case.name, flush=True)


@app.command(name="page")
def write_page() -> None:
    """Write the page of the results that there are."""
    PAGE.write_text(page(read()), encoding="utf-8")


def checked(library: str, name: str, wanted: list[str]) -> list[dict[str, Any]]:
    """The results of a group's models, those too that ended their process."""
    rows: list[dict[str, Any]] = []
    left = list(wanted)
    every = [case.name for case in groups(library)[name]]
    while left:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows"
            skip = [f"--skip={other}" for other in every if other not in left]
            command = [sys.executable, "-m", "benchmarks.models", "group", library, name, str(out), *skip]
            try:
                ended = f"exit status {subprocess.run(command, timeout=LIMIT, check=False).returncode}"
            except subprocess.TimeoutExpired:
                ended = f"more than {LIMIT} s"
            lines = (
                [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
                if out.exists()
                else []
            )
        found = [line for line in lines if "name" in line]
        names = {row["name"] for row in found}
        broken = [line["begun"] for line in lines if "begun" in line and line["begun"] not in names]
        found += [{"name": model, "state": "crash", "why": f"ended its process: {ended}"} for model in broken]
        if not found:
            raise SystemExit(f"{library}, {name}: the process did not begin ({ended})")
        rows += found
        left = [model for model in left if model not in {row["name"] for row in found}]
    return [{"library": library, "group": name, **row} for row in rows]


@app.default
def main(
    *,
    json_file: Annotated[Path, Parameter(name="--json")] = RESULTS,
    only: str = "*",
    library: str = "*",
    again: bool = False,
) -> None:
    """Check models and keep the results.

    Args:
        json_file: where they go. only, library: globs over names. again: also those that have a result.
    """
    rows = {(row["library"], row["name"]): row for row in (read(json_file) if json_file.exists() else [])}
    for of in fnmatch.filter(LIBRARIES, library):
        for name, members in groups(of).items():
            wanted = [
                case.name
                for case in members
                if fnmatch.fnmatch(case.name, only) and (again or (of, case.name) not in rows)
            ]
            for row in checked(of, name, wanted):
                rows[of, row["name"]] = row
            order = [rows[key] for key in ((lib, case.name) for lib, case in cases()) if key in rows]
            content = {"environment": {**environment(), "cores": os.cpu_count()}, "rows": order}
            json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if json_file == RESULTS:
        write_page()


if __name__ == "__main__":
    app()

"""How long the theory suite takes by its commands: python -m benchmarks.theory_times [--json FILE] [--check]

Each command is a process of its own, one after the other, on all cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from metapeft.training.runs.environment import environment
from theory.figures.command import names

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "theory_times.json"
#: seconds that a group of commands may take together, on two cores
BARS = {"verify": 120.0, "linear figures": 60.0, "shallow figures": 600.0}


def commands(out: str) -> list[tuple[str, list[str]]]:
    """Group and arguments of every command."""
    linear = ",".join(name for name in names(None, "corrected") if name != "shallow")
    sweeps = ",".join(name for name in names(None, "paper") if name != "shallow")
    return [
        ("verify", ["verify"]),
        ("linear figures", ["figures", "--out", f"{out}/corrected", "--only", linear]),
        ("linear figures", ["figures", "--out", f"{out}/paper", "--protocol", "paper", "--only", sweeps]),
        ("shallow figures", ["figures", "--out", f"{out}/shallow", "--only", "shallow"]),
    ]


@app.default
def main(
    *,
    json_file: Annotated[Path, Parameter(name="--json")] = RESULTS,
    only: list[str] | None = None,
    check: bool = False,
) -> None:
    """Time the commands and keep the seconds.

    Args:
        json_file: where they go. only: groups, beside which earlier ones are kept; all if left out.
        check: exit with 1 above a bar.
    """
    unknown = set(only or ()) - set(BARS)
    if unknown:
        raise SystemExit(f"unknown group {sorted(unknown)}: known are {', '.join(BARS)}")
    runs: list[dict[str, Any]] = []
    if only and json_file.exists():
        earlier = json.loads(json_file.read_text(encoding="utf-8"))["runs"]
        runs = [run for run in earlier if run["group"] not in only]
    made_with = environment()
    with tempfile.TemporaryDirectory() as out:
        for group, arguments in commands(out):
            if only and group not in only:
                continue
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "theory", *arguments], check=True, capture_output=True)
            took = time.perf_counter() - begun
            shown = " ".join(arguments).replace(out, "OUT")
            command = f"python -m theory {shown}"
            runs.append({"group": group, "command": command, "seconds": took, "commit": made_with["commit"]})
            print(f"{took:7.1f} s  {runs[-1]['command']}", flush=True)
    total = {
        group: sum(run["seconds"] for run in runs if run["group"] == group)
        for group in BARS
        if any(run["group"] == group for run in runs)
    }
    short = [f"{group}: {total[group]:.0f} s, at most {BARS[group]:g} s are wanted" for group in total]
    short = [sentence for group, sentence in zip(total, short) if total[group] > BARS[group]]
    content = {
        "runs": runs, "seconds": total, "bars": BARS, "short": short, "cores": os.cpu_count(),
        "environment": made_with,
    }  # fmt: skip
    json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for sentence in short:
        print(f"SHORT: {sentence}")
    if check and short:
        raise SystemExit(1)


if __name__ == "__main__":
    app()

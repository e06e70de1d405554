"""A GPU, checked and timed: python -m benchmarks.gpu --json FILE [--device cuda] [--quick] [--only PART].

Gradients on the GPU against those on the CPU in float64, training and going on with it, bfloat16, steps against other
libraries, CUDA graphs and `torch.compile`, memory. Every part stands for itself: what fails is named, with its reason,
and the next goes on; what has no time left is said. The file is written after each part. `--device cpu` runs the same
code where there is no GPU.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts import App

from benchmarks.gpu import equal, graphs, memory, steps, training
from benchmarks.gpu.part import Clock, Part, ran
from metapeft.base.files import write_atomically
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
PARTS: tuple[Part, ...] = (*equal.PARTS, *training.PARTS, *steps.PARTS, *graphs.PARTS, *memory.PARTS)
LIMIT = 450.0  # seconds, of all parts


@app.default
def main(
    json_file: Path | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
    quick: bool = False,
    only: list[str] | None = None,
    limit: float = LIMIT,
) -> None:
    """Run all parts; exit with 1 where one fails.

    Args:
        json_file: where the results go. device: where tensors lie. quick: small sizes, to see that all of it runs.
        only: names of parts. limit: seconds after which no new measurement begins.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here: --device cpu runs the same code without one")
    unknown = set(only or ()) - {part.name for part in PARTS}
    if unknown:
        raise SystemExit(f"unknown part {min(unknown)!r}: known are {', '.join(part.name for part in PARTS)}")
    clock = Clock(limit)
    place = torch.device(device)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "quick": quick,
        "environment": environment(),
        "parts": {},
    }
    for part in PARTS:
        if only and part.name not in only:
            continue
        begun = time.monotonic()
        result = ran(part, place, quick, clock)
        result["seconds"] = round(time.monotonic() - begun, 2)
        found["parts"][part.name] = result
        said = result.get("error") or ("passed" if result["passed"] else "FAILED")
        print(f"{part.name:24}{said}  ({result['seconds']:.1f} s)", flush=True)
        if json_file is not None:
            write_atomically(json_file, (json.dumps(found, indent=1) + "\n").encode())
    failed = [name for name, result in found["parts"].items() if not result["passed"]]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    app()

"""How long one waits: imports, help, glyphs, episodes a second. python -m benchmarks.start [--json FILE] [--check]

Medians over repeats, in processes of their own where something is imported; the machine stands beside the numbers.
`--check` exits with 1 and names each that falls short of its bar.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

import metapeft as mp
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "start.json"
#: what is wanted: at most so many seconds, at least so many episodes a second
BARS = {
    "import metapeft after torch, s": 0.3,
    "metapeft --help, s": 0.5,
    "glyphs ready, s": 5.0,
    "episodes a second": 20_000.0,
}


def seconds(code: str) -> float:
    """Seconds that a fresh interpreter measures for a piece of code, which it prints last."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(found.stdout.split()[-1])


def imports(repeats: int) -> dict[str, float]:
    """Importing torch, metapeft on top of it, and answering --help in all."""
    timed = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
    whole = (
        "import subprocess, sys, time; start = time.perf_counter(); "
        "subprocess.run([sys.executable, '-m', 'metapeft', '--help'], capture_output=True); "
        "print(time.perf_counter() - start)"
    )
    return {
        "import torch, s": statistics.median(seconds(timed.format("import torch")) for _ in range(repeats)),
        "import metapeft after torch, s": statistics.median(
            seconds("import torch; " + timed.format("import metapeft")) for _ in range(repeats)
        ),
        "metapeft --help, s": statistics.median(seconds(whole) for _ in range(repeats)),
    }


def glyphs(repeats: int) -> dict[str, float]:
    """The training split of the glyphs, made anew."""
    code = (
        "import time, metapeft as mp; start = time.perf_counter(); mp.load_dataset('glyphs'); "
        "print(time.perf_counter() - start)"
    )
    return {"glyphs ready, s": statistics.median(seconds(code) for _ in range(repeats))}


def episodes(repeats: int) -> dict[str, float]:
    """5-way 1-shot episodes with 15 queries from a set of Omniglot's size, in batches of 16, one thread."""
    torch.set_num_threads(1)
    images = torch.zeros(82_240, 1, 28, 28, dtype=torch.uint8)
    data = mp.ImageData(images, torch.arange(82_240) // 20, [str(i) for i in range(4112)])
    sampler = mp.EpisodeSampler(data, 5, 1, 15, seed=0)
    rates = []
    for attempt in range(4 * repeats):
        start = time.perf_counter()
        for batch in range(50):
            sampler.batch(800 * attempt + 16 * batch, 16)
        rates.append(800 / (time.perf_counter() - start))
    return {"episodes a second": statistics.median(rates)}


def short(medians: dict[str, float]) -> list[str]:
    """A sentence for each number that falls short of its bar.

    Example:
        >>> short({"metapeft --help, s": 0.6, "episodes a second": 20_001.0})
        ['metapeft --help, s: 0.6, at most 0.5 is wanted']
    """
    sentences = []
    for name, bar in BARS.items():
        least = name.endswith("a second")
        found = medians.get(name, bar)
        if found < bar if least else found > bar:
            sentences.append(f"{name}: {found:.4g}, {'at least' if least else 'at most'} {bar:g} is wanted")
    return sentences


@app.default
def main(*, repeats: int = 5, json_file: Path = RESULTS, check: bool = False) -> None:
    """Measure and keep the medians."""
    found: dict[str, Any] = {**imports(repeats), **glyphs(repeats), **episodes(repeats)}
    for name, value in found.items():
        print(f"{name:32}{value:10.3f}")
    content = {"medians": found, "bars": BARS, "repeats": repeats, "environment": environment()}
    json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for sentence in (missed := short(found)):
        print(f"SHORT: {sentence}")
    if check and missed:
        raise SystemExit(1)


if __name__ == "__main__":
    app()

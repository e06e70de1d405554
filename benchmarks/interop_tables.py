"""What docs/howto/coming.md says of episodes, ours and theirs, from benchmarks/results/interop.json."""

from __future__ import annotations

import json
from pathlib import Path

MANY = 20  # times as many episodes a second


def of_interop(results: Path) -> str:
    """Rates in a table, and the least probability of the comparisons, as Markdown."""
    found = json.loads((results / "interop.json").read_text(encoding="utf-8"))
    rates, drawn, where = found["rates"], found["distribution"], found["environment"]
    lines = ["| episodes a second | | metapeft is faster by |", "| --- | ---: | ---: |"]
    for name, rate in rates["median"].items():
        ratio = rates["ratio"].get(name)
        lines.append(f"| {name} | {rate:,.0f} | {'' if ratio is None else f'{ratio:.0f}'} |")
    probabilities = [p for one in drawn["statistics"].values() for p in one["p"].values()]
    cells = [one["cells"] for one in drawn["statistics"].values()]
    sizes = f"{rates['ways']}-way, {rates['shots']}-shot, {rates['queries']} queries, {rates['size']}x{rates['size']}"
    note = (
        f"{sizes} uint8 images, processor seconds of one thread, medians of {len(rates['repeats']['metapeft'])} "
        f"alternating repeats. Distribution: {drawn['episodes']:,} episodes of each, {len(cells)} statistics of "
        f"{min(cells)} to {max(cells)} cells (classes by label, images within a class, pairs of both), each library "
        f"against uniform and ours against each: of {len(probabilities)} chi-square probabilities the least is "
        f"{min(probabilities):.3f}. `python -m benchmarks.interop`, commit {str(where['commit'])[:9]}, {where['cpu']}; "
        "from `benchmarks/results/interop.json`."
    )
    return "\n".join([*lines, "", note])

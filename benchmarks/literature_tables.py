"""The tables of docs/few-shot.md that stand beside the literature's, from benchmarks/results/literature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.literature_rows import PUBLISHED, ROWS, SOURCES, problems
from metapeft.base.intervals import mean_interval
from metapeft.episodes.protocol import Protocol
from metapeft.experiments.tables import percent


def of_literature(results: Path) -> str:
    """A table a problem, a line a row and seed, the best first; empty where nothing was run."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted((results / "literature").glob("*.json"))]
    tables = [of_problem(name, [row for row in found if row["problem"] == name]) for name in problems()]
    return "\n\n".join(table for table in tables if table)


def of_problem(name: str, rows: list[dict[str, Any]]) -> str:
    """One problem's table."""
    if not rows:
        return ""
    bases = {(row["row"], row["seed"]): row for row in rows}
    lines = [
        f"| {name} | accuracy | minus its start's centroids | published | images in episodes | seed | commit |",
        "| --- | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        base = bases.get((row["base"], row["seed"]))
        known = PUBLISHED.get(row["row"], {}).get(name)
        cells = (
            f"{row['row']}: {ROWS[row['row']].about}", percent(row["accuracy"], row["ci95"]),
            "-" if base is None else apart(row, base), "-" if known is None else f"{known}, {SOURCES[row['row']]}",
            f"{row['images']:,}", str(row["seed"]), str(row["environment"]["commit"])[:9],
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    said = {str(Protocol.from_dict({**row["protocol"], "head": None, "inner_steps": None})) for row in rows}
    if len(said) > 1:
        raise ValueError(f"rows of one table were measured by different protocols: {sorted(said)}")
    where = rows[0]["environment"]
    note = (
        f"Accuracy in %, mean ± half-width of the 95 % t-interval over episodes; {said.pop()}. Differences in points, "
        "paired over the same episodes, from nearest centroids on the same start under the same normalisation. "
        "Published numbers are by their own protocols, Conv-4-64 all. Nothing was chosen on test classes. Measured on "
        f"{where['cpu']}; from `benchmarks/results/literature/`."
    )
    return "\n".join([*lines, "", note])


def apart(row: dict[str, Any], base: dict[str, Any]) -> str:
    """The paired difference of two rows on the same episodes.

    Example:
        >>> apart({"values": [1.0, 0.5, 1.0]}, {"values": [0.5, 0.5, 0.5]})
        '+33.33 ± 71.71'
    """
    if len(row["values"]) != len(base["values"]):
        return "-"
    ours, theirs = (torch.tensor(one["values"], dtype=torch.float64) for one in (row, base))
    return percent(*mean_interval(ours - theirs), sign=True)

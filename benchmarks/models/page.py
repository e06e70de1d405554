"""The results of the matrix as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "models.json"
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
STATES = ("whole", "part", "refused", "wrong", "crash")

Rows = list[dict[str, Any]]


def read(file: Path = RESULTS) -> Rows:
    """The rows of a result file."""
    rows: Rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return rows


def shares(rows: Rows) -> tuple[float, float]:
    """The share of models that are carried whole, and of those that are whole or in part.

    Example:
        >>> shares([{"state": "whole"}, {"state": "part"}, {"state": "whole"}, {"state": "refused"}])
        (0.5, 0.75)
    """
    states = [row["state"] for row in rows]
    return states.count("whole") / len(states), sum(s in ("whole", "part") for s in states) / len(states)


def page(rows: Rows) -> str:
    """The page: shares by library, then a row a model."""
    lines = [
        "# Which models run",
        "",
        "`mp.attach(model, mp.LoRA(2))` on architectures of transformers, timm and torch, from configurations with",
        "random weights, on two tasks in float64. A model is *whole* where every layer carries its update, outputs",
        "equal those of two merged plain modules to 1e-8 of the update's effect, and the gradient after an inner step",
        "equals that of a plain loop over the tasks to 1e-6 of the largest; *in part* where some layers were left out,",
        "or torch has no second derivative; *refused* where one sentence says why not. The rate of that step is 0.01,",
        "or 1e-6 or 1e-10 where the plain module's own gradient is not finite. Rows that say Full are under",
        "`mp.Full()`. `python -m benchmarks.models` makes this page from `benchmarks/results/models.json`.",
        "",
        "| library | models | whole | in part | refused | wrong or crashed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    for library in [*libraries, "all"]:
        own = [row for row in rows if library in (row["library"], "all")]
        count = {state: sum(row["state"] == state for row in own) for state in STATES}
        lines.append(
            f"| {library} | {len(own)} | {count['whole']} | {count['part']} | {count['refused']} | "
            f"{count['wrong'] + count['crash']} |"
        )
    for library in libraries:
        lines += [
            "",
            f"## {library}",
            "",
            "| model | group | state | what was left out, or why |",
            "| --- | --- | --- | --- |",
        ]
        for row in rows:
            if row["library"] == library:
                lines.append(f"| {row['name']} | {row['group']} | {_state(row)} | {_said(row)} |")
    return "\n".join(lines) + "\n"


def _state(row: dict[str, Any]) -> str:
    return "in part" if row["state"] == "part" else str(row["state"])


def _said(row: dict[str, Any]) -> str:
    left_out = row.get("left_out", {})
    said = [str(row["why"])] if "why" in row else []
    if left_out:
        names = list(left_out)
        said.append(
            "without " + ", ".join(f"`{name}`" for name in names[:4]) + (", ..." if len(names) > 4 else "")
        )
    if "rate" in row:
        said.append(f"inner rate {row['rate']:g}")
    return "; ".join(said).replace("|", "\\|")

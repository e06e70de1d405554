"""What a study leaves: rows, means over runs with intervals, paired differences, a CSV, a JSON file, a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from metapeft.base.files import write_atomically
from metapeft.base.intervals import mean_interval
from theory.bridge.study import Cell
from theory.figures.done import save_figure
from theory.figures.style import COLOURS, NAMES, panels

Row = dict[str, Any]
COLUMNS = ("sweep", "value", "method", "run", "accuracy", "ci95", "loss", "rate", "steps", "validation")
# method -> its name in all tables
LINES = {
    "sr": "sr+lora", "start": "start+lora", "sr-tasks": "sr-tasks+lora", "reptile": "reptile", "lora-ml": "lora-ml",
}  # fmt: skip


def row(cell: Cell) -> Row:
    """A cell as JSON can say it; `ci95` is over the episodes of the one run."""
    return {
        "value": cell.rank,
        "method": LINES[cell.method],
        "run": cell.seed,
        "accuracy": cell.test.accuracy,
        "ci95": cell.test.ci95,
        "loss": cell.test.loss,
        "rate": cell.chosen.settings["lr"],
        "steps": cell.chosen.settings["steps"],
        "validation": cell.chosen.score,
        "trials": cell.chosen.trials,
        "protocol": None if cell.test.protocol is None else cell.test.protocol.as_dict(),
    }


def accuracies(rows: Sequence[Row], method: str, rank: int) -> torch.Tensor:
    """Accuracy of each run, in the order of the runs, `(runs,)`."""
    found = {r["run"]: r["accuracy"] for r in rows if r["method"] == method and r["value"] == rank}
    return torch.tensor([found[run] for run in sorted(found)], dtype=torch.float64)


def summary(rows: Sequence[Row]) -> list[Row]:
    """For each method and rank: mean and 95 % t-interval over runs, and the paired difference from SR's.

    Example:
        >>> rows = [{"value": 1, "method": m, "run": run, "accuracy": a + 0.1 * run}
        ...         for m, a in (("sr+lora", 0.5), ("reptile", 0.6), ("lora-ml", 0.7)) for run in (0, 1)]
        >>> [(line["method"], round(line["accuracy"], 2), round(line["difference"], 2)) for line in summary(rows)]
        [('sr+lora', 0.55, 0.0), ('reptile', 0.65, 0.1), ('lora-ml', 0.75, 0.2)]
    """
    lines = []
    measured = {row["method"] for row in rows}
    for method in (name for name in LINES.values() if name in measured):
        for rank in sorted({r["value"] for r in rows}):
            own, base = accuracies(rows, method, rank), accuracies(rows, "sr+lora", rank)
            (mean, half), (difference, apart) = mean_interval(own), mean_interval(own - base)
            lines.append(
                {
                    "method": method, "value": rank, "runs": len(own), "accuracy": mean, "ci95": half,
                    "difference": difference, "difference_ci95": apart,
                }
            )  # fmt: skip
    return lines


def document(
    name: str, about: str, study: dict[str, Any], rates: Any, rows: Sequence[Row], made_with: dict[str, Any]
) -> dict[str, Any]:
    """Everything about a study, for its JSON file; `made_with` is the environment in which it was begun."""
    return {
        "data": name, "about": about, "study": study, "outer_rates": rates, "rows": list(rows),
        "summary": summary(rows), "interval": "95 % t over runs; differences paired by run",
        "environment": made_with,
    }  # fmt: skip


def write_json(found: dict[str, Any], out: Path) -> Path:
    """`bridge-<data>.json`, replaced as a whole; an interval of a single run, which is infinite, becomes null."""
    file = out / f"bridge-{found['data']}.json"
    write_atomically(file, (json.dumps(found, indent=1).replace("Infinity", "null") + "\n").encode())
    return file


def write_csv(found: dict[str, Any], out: Path) -> Path:
    """`bridge-<data>.csv`, one row a method, rank and run."""
    file = out / f"bridge-{found['data']}.csv"
    opened = io.StringIO(newline="")
    writer = csv.DictWriter(opened, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"sweep": file.stem, **line} for line in found["rows"])
    write_atomically(file, opened.getvalue().encode())
    return file


def draw(found: dict[str, Any], out: Path) -> list[Path]:
    """`bridge-<data>.png` and `.svg`: accuracy by test rank, and paired differences from SR, with intervals."""
    lines, runs = found["summary"], found["summary"][0]["runs"]
    note = f"{found['about']}. Mean and 95 % t-interval over {runs} runs; differences paired by run."
    figure, (left, right) = panels(2, f"Accuracy by test rank: {found['data']}", note, width=4.6)
    ranks = sorted({line["value"] for line in lines})
    shown = list(dict.fromkeys(line["method"] for line in lines))
    for place, method in enumerate(shown):
        offset = 0.06 * (place - (len(shown) - 1) / 2)
        mine = [line for line in lines if line["method"] == method]
        where = [ranks.index(line["value"]) + offset for line in mine]
        style: dict[str, Any] = {
            "color": COLOURS[method],
            "label": NAMES[method],
            "marker": "o",
            "markersize": 4,
            "capsize": 3,
        }
        left.errorbar(where, *_percent(mine, "accuracy", "ci95"), **style)
        if method != "sr+lora":
            right.errorbar(where, *_percent(mine, "difference", "difference_ci95"), **style)
    right.axhline(0, color=COLOURS["sr+lora"], linewidth=1.2)
    for axis in (left, right):
        axis.set_xticks(range(len(ranks)), [str(rank) if rank else "0\n(head only)" for rank in ranks])
        axis.set_xlabel("LoRA rank r at test")
        axis.legend(fontsize=8, frameon=False)
    left.set_ylabel("accuracy on test classes, %")
    right.set_ylabel("difference from SR, points")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "theory"}):
        files = [out / f"bridge-{found['data']}.{kind}" for kind in ("png", "svg")]
        save_figure(figure, files[0], dpi=130)
        save_figure(figure, files[1], metadata={"Date": None})
    return files


def _percent(lines: Sequence[Row], value: str, half: str) -> tuple[list[float], list[float]]:
    """Values and half-widths in points; a single run has no interval."""
    halves = [line[half] if line["runs"] > 1 else 0.0 for line in lines]
    return [100 * line[value] for line in lines], [100 * number for number in halves]

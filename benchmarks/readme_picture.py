"""The picture of the README, from benchmarks/results: python -m benchmarks.readme_picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import metapeft as mp
from benchmarks.generation_tables import Table, results_of
from metapeft.base.intervals import mean_interval

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "generation.svg"
RESULTS = ROOT / "benchmarks" / "results"
ROWS = {
    "class-encoder": ("generated from the support set", "#0b6fb5"),
    "constant": ("the same update for every task", "#7a7a7a"),
    "blind": ("generated, but blind", "#d55e00"),
}
STYLE: dict[Any, Any] = {
    "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "metapeft", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#9aa0a6",
}  # fmt: skip


def picture() -> Figure:
    """Two episodes of glyph pairs, and how often each row is right after so many outer steps."""
    figure = Figure(figsize=(8.6, 3.0), facecolor="white")
    _episodes(figure)
    _accuracies(figure.add_axes((0.47, 0.16, 0.5, 0.7)))
    return figure


def _episodes(figure: Figure) -> None:
    shift = mp.Shift(["plain", "swap"])
    sampler = mp.EpisodeSampler(mp.load_dataset("glyph-pairs", split="test"), 3, 2, 1, seed=3, shift=shift)
    kinds = sampler.kind_of(range(64))
    for kind in (0, 1):
        episode = sampler[int(np.flatnonzero(kinds == kind)[0])]
        bottom = 0.53 - 0.47 * kind
        side = ("left", "right")[kind]
        figure.text(0.015, bottom + 0.33, f"a task in which the {side} half counts,")
        figure.text(0.015, bottom + 0.255, "two images of each of three classes")
        for item in range(6):
            left = 0.015 + 0.065 * item + 0.012 * (item // 2)
            axes = figure.add_axes((left, bottom, 0.06, 0.06 * 8.6 / 3.0))
            axes.imshow(
                255 - episode.support_x[item, 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            axes.set_xticks([])
            axes.set_yticks([])
            for side_of in axes.spines.values():
                side_of.set(visible=True, color="#c4c9ce", linewidth=0.8)
            half = Rectangle((14 * kind - 0.5, -0.5), 14, 28, fill=False, edgecolor="#0b6fb5", linewidth=1.6)
            axes.add_patch(half)


def _accuracies(axes: Axes) -> None:
    table = Table("glyph-pairs", 0, results_of(RESULTS))
    for name, (label, colour) in ROWS.items():
        found = [mean_interval(table.mean_over_seeds(name, budget)) for budget in table.budgets]
        means, halves = ([one[i] for one in found] for i in (0, 1))
        axes.errorbar(
            table.budgets, means, halves, color=colour, marker="o", markersize=4, capsize=2, linewidth=1.4
        )
        beside = (7, {"constant": 3, "blind": -9}.get(name, 0))
        axes.annotate(
            f"{label}: {means[-1]:.1f} %", (table.budgets[-1], means[-1]), beside, textcoords="offset points",
            va="center", color=colour, annotation_clip=False,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(table.budgets, [f"{budget:,}" for budget in table.budgets])
    axes.minorticks_off()
    axes.set_xlim(table.budgets[0] * 0.9, table.budgets[-1] * 30)
    axes.set_xlabel("outer steps", loc="left")
    axes.set_title("right on fresh tasks, in % (5 classes, 5 images each)", loc="left", fontsize=9)
    axes.grid(axis="y", color="#e3e6e8", linewidth=0.6)


def write(path: Path = PICTURE) -> None:
    """Draw the picture; the same results give the same file."""
    with matplotlib.rc_context(STYLE):
        picture().savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    write()

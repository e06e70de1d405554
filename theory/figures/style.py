"""How the figures look: colours, panels, bands, axes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from theory.models.problems import Array, LinearSetting
from theory.models.tuning_error import parameters

# Colours of Okabe and Ito, which stay apart for the colour-blind.
COLOURS = {
    "sr+lora": "#D55E00",
    "sr": "#D55E00",
    "sr-tasks+lora": "#E69F00",
    "start+lora": "#000000",
    "lora-ml": "#0072B2",
    "reptile": "#009E73",
    "fomaml": "#CC79A7",
    "maml": "#56B4E9",
    "imaml": "#E69F00",
}
NAMES = {
    "sr+lora": "SR + LoRA",
    "sr": "SR",
    "sr-tasks+lora": "SR on the tasks + LoRA",
    "start+lora": "start + LoRA",
    "lora-ml": "LoRA-ML",
    "reptile": "Reptile",
    "fomaml": "FOMAML",
    "maml": "MAML",
    "imaml": "iMAML",
    "spurious": "spurious minimum",
}
MARKERS = {"reptile": "o", "fomaml": "s", "maml": "^", "imaml": "D"}
TEST_LOSS = r"$\sum_{i\leq n}\,\|(W^* - A - UV^\top)\,x_i\|^2$"


def panels(count: int, title: str, note: str = "", width: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure with a row of panels, a title, and a note below it."""
    figure = Figure(figsize=(max(width * count, 5.2), 3.9), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0].tolist()
    figure.suptitle(title, fontsize=12)
    if note:
        figure.supxlabel(textwrap.fill(note, int(27 * max(width * count, 5.2) / 2)), fontsize=8, color="0.35")
    for axis in axes:
        axis.grid(True, color="0.9", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    return figure, axes


def label_caveats(axis: Axes, setting: LinearSetting) -> None:
    """Conditions of the theorems that a setting misses, in its panel."""
    text = textwrap.fill("; ".join(setting.caveats()), 44)
    axis.text(0.5, 0.97, text, transform=axis.transAxes, fontsize=7, color="0.35", ha="center", va="top")


def band(axis: Axes, runs: Sequence[tuple[Array, Array]], method: str, middle: Any = np.mean) -> None:
    """Mean (or median) and range of the curves; one that came to its end earlier is held there."""
    grid = np.unique(np.concatenate([steps for steps, _ in runs]))
    values = np.stack([np.interp(grid, steps, losses) for steps, losses in runs])
    axis.plot(grid, middle(values, axis=0), color=COLOURS[method], label=NAMES[method], linewidth=1.6)
    axis.fill_between(grid, values.min(0), values.max(0), color=COLOURS[method], alpha=0.18, linewidth=0)


def points(axis: Axes, found: dict[float, Array], method: str, **style: Any) -> None:
    """Mean and min-max range of exact end points over values."""
    values = list(found)
    means = np.array([found[value].mean() for value in values])
    axis.plot(values, means, color=COLOURS[method], label=NAMES[method], **style)
    low, high = ([edge(found[value]) for value in values] for edge in (np.min, np.max))
    axis.fill_between(values, low, high, color=COLOURS[method], alpha=0.15, linewidth=0, step=_step(style))


def _step(style: dict[str, Any]) -> Any:
    return "mid" if style.get("drawstyle") == "steps-mid" else None


def floor(axis: Axes, ranks: Sequence[float], noise: float, d: int) -> None:
    """The noise floor, `r(2d - r)` times the noise's variance."""
    heights = [noise**2 * parameters(int(r), d) for r in ranks]
    label = rf"$r(2d-r)\cdot {noise:g}^2$, the noise floor"
    axis.plot(ranks, heights, color="0.3", linestyle="--", linewidth=1, label=label)


def finish_ranks(axis: Axes) -> None:
    """Axes of a figure over test ranks."""
    axis.set_xlabel("test rank r")
    axis.set_ylabel(TEST_LOSS)
    logarithmic(axis)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=8, frameon=False)


def logarithmic(axis: Axes) -> None:
    """A log y axis with few labels."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(10, numticks=7))
    axis.yaxis.set_minor_locator(NullLocator())  # hundreds of tick objects, most of the drawing time


def share_y(axes: Sequence[Axes]) -> None:
    """The same y range on all panels, labels on the first only."""
    low, high = min(a.get_ylim()[0] for a in axes), max(a.get_ylim()[1] for a in axes)
    for axis in axes:
        axis.set_ylim(low, high)
    for axis in axes[1:]:
        axis.tick_params(labelleft=False)

"""Bars: ranks by layer, and what a whole is made of."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.ticker import MaxNLocator

from metapeft.experiments.report.drawing import Drawing, series_colour


def rank_bars(ranks: Mapping[str, Mapping[str, int]], largest: int | None = None) -> str:
    """Draw the rank of each layer as a bar, one colour a rule.

    Args:
        ranks: rule or method ("threshold", "budget 32") -> parameter -> rank.
        largest: the rank before rounding, drawn as a line.

    Returns:
        An `<svg>` element, layers from top to bottom in their order.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> svg = rank_bars({"threshold": {"conv1.weight": 2, "conv2.weight": 0}}, largest=4)
        >>> "conv2.weight" in svg
        True
    """
    layers = list(dict.fromkeys(layer for group in ranks.values() for layer in group))
    if not layers:
        raise ValueError(f"ranks={dict(ranks)}: must hold at least one layer")
    thickness = 0.7 / len(ranks)
    with Drawing(height=0.75 + (0.12 + 0.12 * len(ranks)) * len(layers)) as drawing:
        axes = drawing.axes()
        for index, (name, group) in enumerate(ranks.items()):
            places = [layers.index(layer) + thickness * (index + 0.5) - 0.35 for layer in group]
            bars = axes.barh(
                places, list(group.values()), 0.85 * thickness, color=series_colour(index), label=name
            )
            axes.bar_label(bars, padding=3, fontsize=8)
        axes.set(xlabel="rank", yticks=range(len(layers)), yticklabels=layers)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_xlim(
            0, 1.08 * max([largest or 1, *(rank for group in ranks.values() for rank in group.values())])
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        if largest is not None:
            axes.axvline(largest, color=series_colour(6), linewidth=1.0, linestyle=(0, (4, 3)))
        if len(ranks) > 1:
            drawing.legend(*axes.get_legend_handles_labels())
        return drawing.svg(f"rank by layer: {', '.join(ranks)}")


def stacked_bars(parts: Mapping[str, Mapping[str, float]], xlabel: str) -> str:
    """Draw a bar a row, made of its parts, one colour a part.

    Args:
        parts: row -> part -> size; a row may lack some. xlabel: what the horizontal axis says.

    Returns:
        An `<svg>` element, rows from top to bottom in their order.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> "training" in stacked_bars({"maml": {"training": 3.0, "testing": 1.0}}, "seconds")
        True
    """
    names = list(dict.fromkeys(name for row in parts.values() for name in row))
    if not names:
        raise ValueError(f"parts={dict(parts)}: must hold at least one number")
    with Drawing(height=0.85 + 0.27 * len(parts)) as drawing:
        axes = drawing.axes()
        left = [0.0] * len(parts)
        for index, name in enumerate(names):
            sizes = [row.get(name, 0.0) for row in parts.values()]
            axes.barh(range(len(parts)), sizes, 0.7, left=left, color=series_colour(index), label=name)
            left = [before + size for before, size in zip(left, sizes)]
        axes.set(xlabel=xlabel, yticks=range(len(parts)), yticklabels=list(parts))
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        drawing.legend(*axes.get_legend_handles_labels())
        return drawing.svg(f"{xlabel} of {', '.join(parts)}")

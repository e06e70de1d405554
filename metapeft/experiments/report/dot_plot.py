"""Values with intervals: accuracy by method, or paired differences."""

from __future__ import annotations

from collections.abc import Mapping

from metapeft.experiments.report.drawing import Drawing, series_colour


def intervals(
    groups: Mapping[str, Mapping[str, tuple[float, float | None]]],
    xlabel: str = "accuracy (%)",
    scale: float = 100.0,
    reference: float | None = None,
) -> str:
    """Draw a dot with its interval for each method, one colour a group.

    Args:
        groups: group ("plain", "shifted") -> method -> (value, half-width of its interval or None).
        xlabel: what the horizontal axis says.
        scale: values are multiplied by it: 100 turns fractions into percent.
        reference: where a vertical line stands, before scaling: chance, or 0 for differences.

    Returns:
        An `<svg>` element, methods from top to bottom in their order.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> svg = intervals({"plain": {"SR + LoRA": (0.91, 0.006), "centroids": (0.90, None)}}, reference=0.2)
        >>> "centroids" in svg
        True
    """
    methods = list(dict.fromkeys(method for group in groups.values() for method in group))
    if not methods:
        raise ValueError(f"groups={dict(groups)}: must hold at least one value")
    with Drawing(height=0.75 + (0.16 + 0.14 * len(groups)) * len(methods)) as drawing:
        axes = drawing.axes()
        for index, (name, group) in enumerate(groups.items()):
            offset = 0.5 * ((index + 0.5) / len(groups) - 0.5)
            rows = [
                (scale * value, scale * (half or 0.0), methods.index(key))
                for key, (value, half) in group.items()
            ]
            value, half, row = zip(*rows, strict=True) if rows else ((), (), ())
            axes.errorbar(
                value,
                [position + offset for position in row],
                xerr=half,
                fmt="o",
                markersize=5,
                elinewidth=1.6,
                color=series_colour(index),
                label=name,
            )
        axes.set(xlabel=xlabel, yticks=range(len(methods)), yticklabels=methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        if reference is not None:
            axes.axvline(scale * reference, color=series_colour(6), linewidth=1.0, linestyle=(0, (4, 3)))
        if len(groups) > 1:
            drawing.legend(*axes.get_legend_handles_labels())
        return drawing.svg(f"{xlabel} of {', '.join(methods)}, with intervals")

"""Points of many dimensions by kind, seen in the plane in which they spread most."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metapeft.experiments.report.drawing import Drawing, series_colour

_MARKERS = "os^Dv<>p"


def embedding(groups: Mapping[str, Tensor]) -> str:
    """Draw a dot for each point, one colour and shape a kind, in the two directions of largest variance.

    The directions are the first two right singular vectors of the centred points of all kinds together; each axis says
    its part of the variance.

    Args:
        groups: kind -> points `(n, d)`.

    Returns: an `<svg>` element.

    Raises:
        ValueError: fewer than 2 points, points of different dimensions or that are not finite.

    Example:
        >>> svg = embedding({"plain": torch.zeros(3, 4), "swap": torch.ones(2, 4)})
        >>> "first direction, 100 % of the variance" in svg
        True
    """
    shapes = {name: tuple(points.shape) for name, points in groups.items()}
    if sum(shape[0] for shape in shapes.values()) < 2 or len({shape[1:] for shape in shapes.values()}) != 1:
        raise ValueError(f"groups of shapes {shapes}: must be (n, d) with one d, 2 points in all at least")
    points = torch.cat([points.detach().cpu().double() for points in groups.values()])
    if not bool(points.isfinite().all()):
        raise ValueError("groups has points that are not finite")
    centred = points - points.mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    places = torch.zeros(len(points), 2, dtype=torch.float64)
    places[:, : min(2, len(directions))] = centred @ directions[:2].T
    parts = torch.cat([spread.square(), torch.zeros(2, dtype=torch.float64)])
    shares = (parts / parts.sum().clamp_min(1e-300))[:2].tolist()
    with Drawing(height=3.4) as drawing:
        axes = drawing.axes()
        first = 0
        for index, (name, group) in enumerate(groups.items()):
            own, first = places[first : first + len(group)], first + len(group)
            axes.plot(
                own[:, 0], own[:, 1], _MARKERS[index % len(_MARKERS)], color=series_colour(index), label=name,
                markersize=4, alpha=0.8, linestyle="none",
            )  # fmt: skip
        titles = [f"{word} direction, {100 * share:.0f} % of the variance" for word, share in
                  zip(("first", "second"), shares)]  # fmt: skip
        axes.set(xlabel=titles[0], ylabel=titles[1])
        drawing.legend(*axes.get_legend_handles_labels())
        return drawing.svg(f"{len(points)} points of {', '.join(groups)} in two directions")

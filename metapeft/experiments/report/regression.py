"""Fits of one-dimensional regression tasks, before and after adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from metapeft.experiments.report.drawing import INK, Drawing, numbers, series_colour

_COLOURS = {"truth": INK, "before": series_colour(6), "after": series_colour(1)}
_DASHES: dict[str, Any] = {"truth": (0, (2, 1.5)), "before": "-", "after": "-"}


def fits(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Draw one panel a task: truth, prediction before and after adaptation, support points.

    Args:
        tasks: each with `x` `(n,)` in rising order, `truth`, `before`, `after` `(n,)` at those places, and
            the support points `support_x`, `support_y` `(S,)`; tensors or lists. At most 6 are readable.

    Returns:
        An `<svg>` element with two panels a row.

    Raises:
        ValueError: if there is no task, or one lacks an entry.

    Example:
        >>> task = {"x": [0, 1], "truth": [0, 1], "before": [0, 0], "after": [0, 0.9]}
        >>> "after" in fits([task | {"support_x": [0.5], "support_y": [0.5]}])
        True
    """
    if not tasks:
        raise ValueError("tasks=[]: must hold at least one task")
    for index, task in enumerate(tasks):
        if missing := {"x", "support_x", "support_y", *_COLOURS} - set(task):
            raise ValueError(
                f"task {index} has no {sorted(missing)[0]!r}: must have {', '.join(('x', *_COLOURS))}, ..."
            )
    columns = min(2, len(tasks))
    rows = -(-len(tasks) // columns)
    with Drawing(height=0.5 + (1.5 if columns > 1 else 2.6) * rows) as drawing:
        panels = drawing.figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for panel, task in zip(panels, tasks, strict=False):
            for name, colour in _COLOURS.items():
                x, y = numbers(task["x"]).flatten(), numbers(task[name]).flatten()
                panel.plot(x, y, color=colour, linestyle=_DASHES[name], linewidth=1.3)
            points = numbers(task["support_x"]).flatten(), numbers(task["support_y"]).flatten()
            panel.plot(*points, "o", color=series_colour(0), markersize=4)
        for panel in panels[len(tasks) :]:
            panel.remove()
        handles = [Line2D([], [], color=_COLOURS[name], linestyle=_DASHES[name]) for name in _COLOURS]
        handles.append(Line2D([], [], color=series_colour(0), linestyle="", marker="o", markersize=4))
        drawing.legend(handles, [*_COLOURS, "support"])
        return drawing.svg(
            f"{len(tasks)} regression tasks: truth, and predictions before and after adaptation"
        )

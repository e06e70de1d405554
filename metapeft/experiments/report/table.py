"""Reports: one page that is read offline, and the pictures on it, as functions from plain data to SVG."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.experiments.report",
    "part of a report",
    attributes={
        "write_report": "page",
        "Section": "page",
        "Figure": "page",
        "Table": "page",
        "curves": "line_plot",
        "intervals": "dot_plot",
        "rank_bars": "bar_plot",
        "episode_grid": "pictures",
        "fits": "regression",
    },
)

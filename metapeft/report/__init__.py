"""Reports: one page that is read offline, and the pictures on it, as functions from plain data to SVG."""

from __future__ import annotations

from typing import Any

from metapeft._registry import Registry

registry = Registry(
    __name__,
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


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)

"""Reports: one page that is read offline, and the pictures on it, as functions from plain data to SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.experiments.report.table import registry

if TYPE_CHECKING:
    from metapeft.experiments.report.bar_plot import rank_bars
    from metapeft.experiments.report.dot_plot import intervals
    from metapeft.experiments.report.line_plot import curves
    from metapeft.experiments.report.page import Figure, Section, Table, write_report
    from metapeft.experiments.report.pictures import episode_grid
    from metapeft.experiments.report.regression import fits
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "Figure",
    "Section",
    "Table",
    "curves",
    "episode_grid",
    "fits",
    "intervals",
    "rank_bars",
    "registry",
    "write_report",
]

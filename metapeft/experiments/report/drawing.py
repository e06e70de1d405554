"""What all pictures share: size, style, and SVG whose colours follow the page.

Text and axes take the colour of the page's text, and each series has a colour of its own that the page may
change for dark mode: the colours that matplotlib writes are exchanged for CSS variables, with themselves to
fall back on.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metapeft.experiments.report.inline_svg import inline

WIDTH = 4.8  # inches, at 96 pixels each: readable without zoom on a phone, two in a row on a desk
# told apart by all
SERIES = ("#0b6fb5", "#d55e00", "#0a8f68", "#b0559a", "#b8860b", "#6a6ad8", "#7a7a7a", "#a0522d")
INK, GRID = "#1b1f24", "#d5d9de"
COLOURS = {
    **{colour: f"var(--series-{number}, {colour})" for number, colour in enumerate(SERIES, start=1)},
    INK: "currentColor",
    GRID: f"var(--grid, {GRID})",
}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the font of the page
    "svg.hashsalt": "metapeft",  # the same data give the same file
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
}


class Drawing:
    """A matplotlib figure of the report's width, with a context in which the report's style holds.

    Example:
        >>> with Drawing(height=2.0) as drawing:
        ...     axes = drawing.axes()
        ...     _ = axes.plot([0, 1], [0, 1], color=SERIES[0])
        ...     svg = drawing.svg("a line")
        >>> svg.startswith('<svg role="img" aria-label="a line"'), "var(--series-1, #0b6fb5)" in svg
        (True, True)
    """

    def __init__(self, height: float, width: float = WIDTH) -> None:
        self._context = matplotlib.rc_context(_STYLE)
        self._size = (width, height)

    def __enter__(self) -> Drawing:
        self._context.__enter__()
        self.figure = Figure(figsize=self._size, layout="constrained")
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def axes(self) -> Axes:
        """The only axes of the figure."""
        return self.figure.subplots()

    def legend(self, handles: Sequence[Any], labels: Sequence[str]) -> None:
        """A legend above the axes, filled row by row."""
        letters = max(map(len, labels)) + 5  # of the widest label, with the line before it
        columns = min(len(labels), max(1, 56 // letters))
        order = [index for column in range(columns) for index in range(column, len(labels), columns)]
        self.figure.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            loc="outside upper left",
            ncols=columns,
            handlelength=1.2,
            columnspacing=1.2,
        )

    def svg(self, description: str) -> str:
        """The figure as an `<svg>` element for a page that has others too; `description` is read aloud."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return inline(buffer.getvalue(), description, COLOURS)


def numbers(values: Any) -> Tensor:
    """Any sequence or tensor of numbers as float64 on the CPU; None becomes not-a-number.

    Example:
        >>> numbers([1, None, 2.5])
        tensor([1.0000,    nan, 2.5000], dtype=torch.float64)
    """
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.tensor(
        [float("nan") if value is None else float(value) for value in values], dtype=torch.float64
    )


def series_colour(index: int) -> str:
    """The colour of series `index`, starting again after the last."""
    return SERIES[index % len(SERIES)]


def series_line(index: int) -> str:
    """The line of series `index`: solid, dashed where colours start again, then dotted."""
    return ("-", "--", ":")[index // len(SERIES) % 3]

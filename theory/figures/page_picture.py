"""A figure as part of the summary page: in its colours, light or dark, and without the notes that stand below it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from metapeft.experiments.report.inline_svg import inline
from theory.figures.style import COLOURS

INK, GRID = "#1b1f24", "#e6e6e6"  # the second is what matplotlib writes for the grid's "0.9"
_GREYS = {
    "#4d4d4d": "var(--text)",
    "#595959": "var(--faint)",
    "#999999": "var(--faint)",
}  # "0.3", "0.35", "0.6"
_ON_PAGE = {
    **{colour.lower(): f"var(--{colour[1:].lower()}, {colour})" for colour in COLOURS.values()},
    **_GREYS,
    INK: "currentColor",
    GRID: "var(--grid)",
}
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "theory",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def page_picture(draw: Callable[[], Figure]) -> str:
    """What `draw` draws, as an `<svg>` element that is read aloud by its title.

    Example:
        >>> def draw():
        ...     figure = Figure()
        ...     figure.suptitle("A < B")
        ...     return figure
        >>> svg = page_picture(draw)
        >>> 'aria-label="A &lt; B"' in svg, INK in svg
        (True, False)
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = draw()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), figure.get_suptitle(), _ON_PAGE)

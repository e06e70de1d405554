"""Curves against the step: losses, accuracies, rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import number
from metapeft.experiments.report.drawing import Drawing, numbers, series_colour, series_line


def curves(
    series: Mapping[str, tuple[Sequence[Any] | Tensor, Sequence[Any] | Tensor]],
    xlabel: str = "step",
    ylabel: str = "loss",
    smoothing: float = 0.0,
    logarithmic: bool = False,
) -> str:
    """Draw one line a series; with smoothing, the values as they are stay behind it as a pale line.

    Args:
        series: name -> (steps, values), of equal length; values that are None or not finite leave a gap.
        xlabel: what the horizontal axis says.
        ylabel: what the vertical axis says.
        smoothing: in [0, 1): weight of the past in an exponential average, see `smooth`.
        logarithmic: vertical axis; values of 0 and below leave a gap.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: if nothing is there to draw, lengths differ, or smoothing is not in [0, 1).

    Example:
        >>> svg = curves({"SR": ([0, 1, 2], [1.0, 0.5, 0.4]), "LoRA-ML": ([0, 1, 2], [1.1, 0.7, None])})
        >>> svg.count("SR"), svg.startswith("<svg")
        (2, True)
    """
    if not series:
        raise ValueError("series={}: must hold at least one curve")
    number(0, 1, smoothing=smoothing)
    with Drawing(height=2.9) as drawing:
        axes = drawing.axes()
        for index, (name, (steps, values)) in enumerate(series.items()):
            x, y = numbers(steps), numbers(values)
            if x.shape != y.shape or x.dim() != 1:
                raise ValueError(
                    f"series {name!r} has {x.numel()} steps and {y.numel()} values: must be as many"
                )
            y = torch.where(torch.isfinite(y) & ((y > 0) | (not logarithmic)), y, torch.nan)
            marker = "o" if torch.isfinite(y).sum() == 1 else None  # a line of one point is nothing
            colour = series_colour(index)
            if smoothing:
                axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
                y = smooth(y, smoothing)
            axes.plot(
                x, y, series_line(index), color=colour, linewidth=1.6, label=name, marker=marker, markersize=4
            )
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if logarithmic:
            axes.set_yscale("log")
        if len(series) > 1:
            drawing.legend(*axes.get_legend_handles_labels())
        return drawing.svg(f"{ylabel} against {xlabel}: {', '.join(series)}")


def smooth(values: Tensor, weight: float) -> Tensor:
    """Exponential average, `s_i = sum_j weight^(i-j) v_j / sum_j weight^(i-j)` over the finite `v_j` so far.

    Args:
        values: `(n,)`.
        weight: of the past, in [0, 1).

    Returns:
        `(n,)`; not-a-number where the value itself is.

    Example:
        >>> smooth(torch.tensor([1.0, 3.0, float("nan"), 3.0]), weight=0.5)
        tensor([1.0000, 2.3333,    nan, 2.8182])
    """
    total = mass = 0.0
    smoothed = []
    for value in values.tolist():
        finite = value == value
        total, mass = weight * total + (value if finite else 0.0), weight * mass + finite
        smoothed.append(total / mass if finite else value)
    return torch.tensor(smoothed, dtype=values.dtype)

"""Scores of terms by layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from metapeft.experiments.report.drawing import Drawing, series_colour


def score_dots(scores: Mapping[str, Tensor]) -> str:
    """Draw the score of each term as a dot, a line a layer, on a logarithmic scale; scores of 0 are left out.

    Args:
        scores: parameter -> `(terms,)`.

    Returns: an `<svg>` element, layers from top to bottom in their order.

    Raises:
        ValueError: no score above 0.

    Example:
        >>> import torch
        >>> "conv1.weight" in score_dots({"conv1.weight": torch.tensor([2.0, 0.1])})
        True
    """
    kept = {name: [score for score in value.tolist() if score > 0] for name, value in scores.items()}
    if not any(kept.values()):
        raise ValueError(f"scores of {', '.join(list(scores)[:5])}: at least one must be above 0")
    with Drawing(height=0.75 + 0.24 * len(kept)) as drawing:
        axes = drawing.axes()
        for place, own in enumerate(kept.values()):
            axes.plot(own, [place] * len(own), "o", markersize=4, color=series_colour(0))
        axes.set(xlabel="score of a term", xscale="log", yticks=range(len(kept)), yticklabels=list(kept))
        axes.set_ylim(len(kept) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        return drawing.svg("scores of terms by layer")

"""Whether selection variables have moved from equal weights, before which their ranks say nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

STILL = 0.1  # a part of 1/k: below it the order of the weights is that of noise


def largest_move(logits: Mapping[str, Tensor]) -> float:
    """`max |k softmax(logits)_j - 1|` over all terms of all layers: 0 at the start, where all weights are 1/k.

    Args:
        logits: parameter -> `(k,)`.

    Example:
        >>> import torch
        >>> largest_move({"a": torch.zeros(4)}), largest_move({"a": torch.tensor([50.0, 0.0])})
        (0.0, 1.0)
    """
    moves = [(len(value) * value.detach().double().softmax(0) - 1).abs().max() for value in logits.values()]
    return float(max(moves)) if moves else 0.0


def unmoved(logits: Mapping[str, Tensor]) -> str:
    """A sentence where the weights have hardly moved, else nothing.

    Example:
        >>> import torch
        >>> unmoved({"a": torch.tensor([0.02, 0.0])})
        'The weights have hardly moved: by 1.0 % of 1/k at most, so that their order, and these ranks, are noise.'
    """
    far = largest_move(logits)
    if far >= STILL:
        return ""
    if far == 0:
        return "The weights have not moved from 1/k: these ranks say nothing."
    return (
        f"The weights have hardly moved: by {100 * far:.1f} % of 1/k at most, so that their order, and these ranks, "
        "are noise."
    )

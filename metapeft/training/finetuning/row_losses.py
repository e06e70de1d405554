"""Losses of rows and of tokens: sums and weights, so that means over cut and padded batches come out right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.machine.memory import is_out_of_memory
from metapeft.learner.labels import IGNORED


def next_token_cross_entropy(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every token but the first given those before it, for causal language models.

    `l_bi = -log softmax(outputs_bi)[targets_b(i+1)]`; a target of -100 does not count.

    Args:
        outputs: logits `(rows, L, V)`. targets: tokens `(rows, L)` int64, in most cases the `input_ids` themselves.

    Returns: losses and weights `(rows, L - 1)`; `mp.finetune` takes the mean over all tokens of a batch.

    Example:
        >>> values, weights = next_token_cross_entropy(torch.zeros(1, 3, 4), torch.tensor([[1, 2, -100]]))
        >>> values, weights
        (tensor([[1.3863, 0.0000]]), tensor([[1., 0.]]))
    """
    targets = targets[:, 1:]
    values = F.cross_entropy(outputs[:, :-1].transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    return values, (targets != IGNORED).to(values)


def sums(
    rows: Callable[..., Any], loss: Callable[..., Any], outputs: Tensor, y: Tensor, there: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of a batch's losses and of their weights, a row: what all means are made of.

    A class per row or token counts where it is not -100; of other targets a row counts once, its further axes
    averaged. A loss may also return its weights, as `next_token_cross_entropy` does.

    Args:
        rows: the loss, from `row_loss`. loss: as the user gave it.
        outputs: `(R, ...)`. y: `(R, ...)`. there: `(R,)`, False for rows that only fill up.

    Returns: `(R,)` both.

    Raises:
        ValueError: targets that do not go with the outputs, a loss that does not return one value a row or token.

    Example:
        >>> loss = lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none")
        >>> y = torch.tensor([[0, 1], [1, -100]])
        >>> values, weights = sums(loss, F.cross_entropy, torch.zeros(2, 2, 4), y, torch.tensor([True, True]))
        >>> weights
        tensor([2., 1.])
    """
    classes = not y.is_floating_point()
    if loss is F.cross_entropy and classes:
        if outputs.shape[:-1] != y.shape:
            raise ValueError(
                f"targets have shape {tuple(y.shape)}, outputs {tuple(outputs.shape)}: cross-entropy wants one class "
                "a row or token, outputs (rows, ..., classes)"
            )
        outputs = outputs.movedim(-1, 1)
    elif not classes and outputs.shape != y.shape and loss is getattr(F, getattr(loss, "__name__", ""), None):
        raise ValueError(
            f"targets have shape {tuple(y.shape)}, outputs {tuple(outputs.shape)}: a target has the axes of an output"
        )
    try:
        found = rows(outputs, y)
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        what = f"outputs {tuple(outputs.shape)} and targets {tuple(y.shape)} of {y.dtype}"
        raise ValueError(f"loss= cannot be taken of {what}: {error}") from error
    values, weights = found if isinstance(found, tuple) else (found, None)
    if values.dim() == 0 or len(values) != len(y):
        raise ValueError(
            f"loss returned shape {tuple(values.shape)} for {len(y)} rows: it must return one value a row or token"
        )
    if weights is None:
        if classes and values.shape == y.shape:
            weights = (y != IGNORED).to(values)
        else:
            values = values.reshape(len(y), -1).mean(1)
            weights = torch.ones_like(values)
    own = there.to(values)
    return (values * weights).reshape(len(y), -1).sum(1) * own, weights.reshape(len(y), -1).sum(1) * own

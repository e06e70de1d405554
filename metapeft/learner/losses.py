"""Losses and accuracies of items: one value a task, under the mask."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.base.machine.memory import is_out_of_memory
from metapeft.learner.items import Items
from metapeft.learner.labels import IGNORED


def task_means(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the items of each task, `(T, B) -> (T,)`, under the mask.

    Example:
        >>> import torch
        >>> task_means(torch.tensor([[1.0, 5.0]]), torch.tensor([[True, False]]))
        tensor([1.])
    """
    if mask is None:
        return values.mean(1)
    weight = mask.to(values)
    return (values * weight).sum(1) / weight.sum(1)


def row_loss(loss: Callable[..., Tensor], name: str = "loss") -> Callable[[Tensor, Tensor], Tensor]:
    """`loss` as a function of outputs and targets that gives one value a row.

    Functions of torch are called with `reduction="none"`; what has no such argument is called without it.

    Raises:
        ValueError: no callable; a loss module that reduces by itself.

    Example:
        >>> import torch
        >>> row_loss(torch.nn.functional.mse_loss)(torch.zeros(2), torch.ones(2))
        tensor([1., 1.])
    """
    if not callable(loss) or isinstance(loss, type):
        raise ValueError(f"{name}={loss!r} has to be a function (outputs, targets, reduction) -> (rows,)")
    own = getattr(loss, "reduction", "none")
    if own != "none":
        raise ValueError(
            f'{name}={loss!r} reduces by itself: build it with reduction="none", one value a row'
        )
    parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    takes = "reduction" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return functools.partial(loss, reduction="none") if takes else loss


def row_losses(
    loss: Callable[..., Tensor], inner_loss: Callable[..., Tensor] | None
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """`row_loss` of both levels; without an inner loss they are the same.

    Raises:
        ValueError: what `row_loss` refuses, by its argument.

    Example:
        >>> import torch
        >>> outer, inner = row_losses(torch.nn.functional.mse_loss, None)
        >>> outer is inner
        True
    """
    rows = row_loss(loss)
    return rows, rows if inner_loss is None else row_loss(inner_loss, "inner_loss")


def losses(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, items: Items) -> Tensor:
    """Mean loss of each task, `(T,)`: one value an item on flattened rows, further axes averaged.

    Where a class is given for each token, `y (T, B, L)`, and the loss has a value for each, the mean is over all tokens
    of a task that are not -100.

    Args:
        loss: `loss(outputs (T*B, ...), y (T*B, ...))`, from `row_loss`.
        outputs: `(T, B, ...)`.
        items: their labels and mask.

    Raises:
        ValueError: items without labels; a loss that does not return one value an item.
    """
    if items.y is None:
        raise ValueError("these items have no labels, so they have no loss")
    tasks, count = outputs.shape[:2]
    try:
        values = loss(outputs.flatten(0, 1), items.y.flatten(0, 1))
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        what = f"outputs {tuple(outputs.shape)} and targets {tuple(items.y.shape)} of {items.y.dtype}"
        raise ValueError(f"loss= cannot be taken of {what}: {error}") from error
    if values.dim() == 0 or values.shape[0] != tasks * count:
        raise ValueError(
            f"loss returned shape {tuple(values.shape)} for {tasks * count} items: it must return one value "
            "an item, so build it without its own mean"
        )
    if values.dim() > 1 and values.shape == items.y.flatten(0, 1).shape and not items.regression:
        return _means_of_tokens(values.reshape(items.y.shape), items.y, items.mask)
    return task_means(values.reshape(tasks, count, -1).mean(-1), items.mask)


def _means_of_tokens(values: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Means over the tokens of each task that count, `(T, B, ...) -> (T,)`: as torch's own over a batch of them."""
    counted = (
        (y != IGNORED) if mask is None else (y != IGNORED) & mask.reshape(*mask.shape, *[1] * (y.dim() - 2))
    )
    kept = torch.where(counted, values, torch.zeros_like(values))
    return kept.flatten(1).sum(1) / counted.flatten(1).sum(1)


def task_losses(
    loss: Callable[..., Tensor],
    rows: Callable[[Tensor, Tensor], Tensor],
    outputs: Tensor,
    items: Items,
    ways: int,
) -> Tensor:
    """Mean loss of each task, `(T,)`, of targets that fit the loss.

    Args:
        loss: as the user gave it. rows: the same, from `row_loss`.
        outputs: `(T, B, N)`. items: their labels and mask. ways: N of the episodes.

    Raises:
        ValueError: what `losses`, `refuse_classes` (for cross-entropy) and `refuse_targets` (for others) refuse.
    """
    if loss is F.cross_entropy:
        refuse_classes(outputs, items, ways)
    else:
        refuse_targets(outputs, items, getattr(F, getattr(loss, "__name__", ""), None) is loss)
    return losses(rows, outputs, items)


def batch_value(
    loss: Callable[[Tensor, Tensor | None, Tensor | None], Tensor], outputs: Tensor, items: Items
) -> Tensor:
    """The loss of a whole batch as the value of each of its tasks, `(T,)`, of which it is the mean.

    Raises:
        ValueError: a loss that does not return one number.

    Example:
        >>> import torch
        >>> items = Items(torch.zeros(2, 3, 1), torch.zeros(2, 3))
        >>> batch_value(lambda outputs, y, mask: outputs.square().sum(), torch.ones(2, 3, 1), items)
        tensor([6., 6.])
    """
    value = loss(outputs, items.y, items.mask)
    if not isinstance(value, Tensor) or value.ndim:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"batch_loss returned {what}: it has to return one number, shape (), for all tasks together"
        )
    return value.expand(outputs.shape[0])


def refuse_classes(logits: Tensor, items: Items, ways: int) -> None:
    """Raise ValueError for labels that are no classes, or more classes than logits `(T, B, N)`.

    Example:
        >>> import torch
        >>> refuse_classes(torch.zeros(1, 2, 3), Items(torch.zeros(1, 2, 4), torch.zeros(1, 2)), 3)
        Traceback (most recent call last):
        ValueError: class labels are integers, 0 .. ways - 1, not torch.float32: a regression needs another loss, such \
as F.mse_loss
    """
    if logits.dim() == 3 and logits.shape[-1] < ways:
        raise ValueError(
            f"the episodes have {ways} ways, the learned head {logits.shape[-1]} outputs: take a "
            'backbone with as many, or a head of any way, such as "prototype-init"'
        )
    if items.y is None or not items.regression:
        return
    if items.y.dim() == 2 or logits.shape[-1] == 1:  # of three axes and several outputs: probabilities
        raise ValueError(
            f"class labels are integers, 0 .. ways - 1, not {items.y.dtype}: a regression needs another loss, such as "
            "F.mse_loss"
        )


def refuse_targets(outputs: Tensor, items: Items, alike: bool) -> None:
    """Raise ValueError for targets of a regression that have not the axes of the outputs `(T, B, out)`.

    A loss would spread `(T, B)` over all pairs of items, without a word.

    Args:
        alike: whether the shapes have to be equal too, as torch's own losses want it.

    Example:
        >>> import torch
        >>> refuse_targets(torch.zeros(1, 2, 1), Items(torch.zeros(1, 2, 4), torch.zeros(1, 2)), True)
        Traceback (most recent call last):
        ValueError: targets have shape (1, 2), outputs (1, 2, 1): a target has the axes of an output, (T, B, out)
    """
    if items.y is None or not items.regression:
        return
    same = items.y.shape == outputs.shape if alike else items.y.dim() == outputs.dim()
    if not same:
        raise ValueError(
            f"targets have shape {tuple(items.y.shape)}, outputs {tuple(outputs.shape)}: a target has the axes of an "
            "output, (T, B, out)"
        )


def correct(logits: Tensor, items: Items) -> Tensor | None:
    """Accuracy of each task, `(T,)`; None where the labels are no classes, one an item.

    Example:
        >>> import torch
        >>> items = Items(torch.zeros(1, 2, 1), torch.tensor([[1, 1]]))
        >>> correct(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), items)
        tensor([0.5000])
    """
    if items.y is None or items.regression or logits.dim() != 3 or items.y.dim() != 2:
        return None
    return task_means((logits.detach().argmax(-1) == items.y).to(logits.dtype), items.mask)

"""Some inputs of every task with their labels, and what is measured on them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.finite import refuse_not_finite
from metapeft.memory import is_out_of_memory
from metapeft.updates.attached import AttachedModel
from metapeft.updates.inputs import join, leaves, mapped, sizes


@dataclass(frozen=True)
class Items:
    """Inputs `x` with leaves `(T, B, ...)`, labels `y (T, B, ...)`, `mask (T, B)`: True for items that count.

    Example:
        >>> items = Items(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
        >>> items.count, items.with_items(items).count
        (3, 6)
    """

    x: Any
    y: Tensor | None
    mask: Tensor | None = None

    @property
    def count(self) -> int:
        return leaves(self.x)[0].shape[1]

    @property
    def regression(self) -> bool:
        """Whether the labels are numbers, not classes."""
        return self.y is not None and self.y.is_floating_point()

    def with_items(self, other: Items) -> Items:
        """These items followed by those of `other`."""
        y = None if self.y is None or other.y is None else torch.cat([self.y, other.y], 1)
        if self.mask is None and other.mask is None:
            return Items(join(self.x, other.x), y)
        masks = [_mask(part) for part in (self, other)]
        return Items(join(self.x, other.x), y, torch.cat(masks, 1))


def _mask(items: Items) -> Tensor:
    if items.mask is not None:
        return items.mask
    like = leaves(items.x)[0]
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)


def checked(items: Items, name: str) -> Items:
    """The items, if labels and mask have the axes of the inputs; raises ValueError otherwise.

    Args:
        items: what a user passed.
        name: `"support"` or `"query"`, for messages.
    """
    tasks, count = sizes(items.x, f"{name}_x")
    for field, value in (("y", items.y), ("mask", items.mask)):
        refuse_no_tensor(value, f"{name}_{field}")
    for field, value in (("y", items.y), ("mask", items.mask)):
        if value is not None and tuple(value.shape[:2]) != (tasks, count):
            raise ValueError(
                f"{name}_{field} has shape {tuple(value.shape)}, but {name}_x holds {tasks} tasks of {count} "
                f"inputs: its shape starts with ({tasks}, {count})"
            )
    if items.mask is not None and items.mask.dtype != torch.bool:
        raise ValueError(
            f"{name}_mask is {items.mask.dtype}: allowed is torch.bool, True for items that count"
        )
    if items.mask is not None and not bool(items.mask.any(1).all()):
        raise ValueError(f"{name}_mask is False everywhere in a task: at least one of its items has to count")
    if items.y is not None and not items.regression and items.y.dtype not in _INTEGERS:
        raise ValueError(f"{name}_y is {items.y.dtype}: labels are integers, regression targets floats")
    return items


def refuse_no_tensor(value: object, name: str) -> None:
    """Raise ValueError for what is neither a tensor nor None.

    Example:
        >>> refuse_no_tensor([0, 1], "support_y")
        Traceback (most recent call last):
        ValueError: support_y is of type list: a tensor is needed, such as torch.tensor(...) of it
    """
    if value is not None and not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is of type {type(value).__name__}: a tensor is needed, such as torch.tensor(...) of it"
        )


def moved(items: Items, model: AttachedModel, name: str) -> Items:
    """Checked items on the model's device: uint8 images, other floats and targets in its floats.

    Raises:
        ValueError: what `checked` refuses.
        NotFiniteInput: NaN or infinity in inputs or targets.
    """
    y, like = checked(items, name).y, next(model.backbone.parameters())
    refuse_not_finite(items.x, f"{name}_x")
    if y is not None:
        refuse_not_finite(y, f"{name}_y")
        y = y.to(like) if items.regression else y.to(like.device, torch.int64)
    mask = None if items.mask is None else items.mask.to(like.device)
    dtypes = {value.dtype for value in model.backbone.parameters()}
    x = items.x
    if len(dtypes) == 1:
        x = mapped(x, lambda value: value.to(like.dtype) if value.is_floating_point() else value)
    return Items(model.prepared(x, f"{name}_x"), y, mask)


def number_of_ways(y: Tensor, ways: int | None) -> int:
    """N of the labels y: `ways` if it fits them, None for the largest label + 1; 1 for regression.

    Raises:
        ValueError: no tensor, no labels, labels below 0, or not below `ways`.
    """
    refuse_no_tensor(y, "support_y")
    if not y.numel():
        raise ValueError(f"support_y has shape {tuple(y.shape)}: at least one labelled input is needed")
    if y.is_floating_point():
        return 1
    least, most = int(y.min()), int(y.max())
    found = most + 1 if ways is None else ways
    if least < 0 or most >= found:
        raise ValueError(
            f"support_y has labels {least} to {most}: {found} ways are labelled 0 to {found - 1}"
        )
    return found


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def task_means(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the items of each task, `(T, B) -> (T,)`, under the mask.

    Example:
        >>> task_means(torch.tensor([[1.0, 5.0]]), torch.tensor([[True, False]]))
        tensor([1.])
    """
    if mask is None:
        return values.mean(1)
    weight = mask.to(values)
    return (values * weight).sum(1) / weight.sum(1)


def row_loss(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """`loss` as a function of outputs and targets that gives one value a row.

    Functions of torch are called with `reduction="none"`; what has no such argument is called without it.

    Raises:
        ValueError: no callable; a loss module that reduces by itself.

    Example:
        >>> row_loss(torch.nn.functional.mse_loss)(torch.zeros(2), torch.ones(2))
        tensor([1., 1.])
    """
    if not callable(loss) or isinstance(loss, type):
        raise ValueError(f"loss={loss!r} has to be a function (outputs, targets, reduction) -> (rows,)")
    own = getattr(loss, "reduction", "none")
    if own != "none":
        raise ValueError(f'loss={loss!r} reduces by itself: build it with reduction="none", one value a row')
    parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    takes = "reduction" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return functools.partial(loss, reduction="none") if takes else loss


def losses(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, items: Items) -> Tensor:
    """Mean loss of each task, `(T,)`: one value an item on flattened rows, further axes averaged.

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
    return task_means(values.reshape(tasks, count, -1).mean(-1), items.mask)


def refuse_classes(logits: Tensor, items: Items, ways: int) -> None:
    """Raise ValueError for labels that are no classes, or more classes than logits `(T, B, N)`.

    Example:
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


def refuse_labels(items: Items, ways: int | None, name: str) -> None:
    """Raise ValueError for class labels, one an item, that are not 0 .. ways - 1, or below 0 where ways are not known.

    Example:
        >>> refuse_labels(Items(torch.zeros(1, 2, 4), torch.tensor([[0, 7]])), 5, "query")
        Traceback (most recent call last):
        ValueError: query_y has labels 0 to 7: 5 ways are labelled 0 to 4
    """
    if items.y is None or items.regression or items.y.dim() != 2:
        return
    labels = items.y if items.mask is None else items.y[items.mask]
    least, most = (int(value) for value in labels.aminmax())
    if least < 0 or (ways is not None and most >= ways):
        wanted = (
            "classes are labelled from 0 on" if ways is None else f"{ways} ways are labelled 0 to {ways - 1}"
        )
        raise ValueError(f"{name}_y has labels {least} to {most}: {wanted}")


def correct(logits: Tensor, items: Items) -> Tensor | None:
    """Accuracy of each task, `(T,)`; None where the labels are no classes, one an item.

    Example:
        >>> items = Items(torch.zeros(1, 2, 1), torch.tensor([[1, 1]]))
        >>> correct(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), items)
        tensor([0.5000])
    """
    if items.y is None or items.regression or logits.dim() != 3 or items.y.dim() != 2:
        return None
    return task_means((logits.detach().argmax(-1) == items.y).to(logits.dtype), items.mask)

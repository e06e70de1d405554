"""Some inputs of every task with their labels, and what is measured on them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metapeft.base.finite import refuse_not_finite
from metapeft.base.trees import mapped, tree_leaves
from metapeft.datasets.images import Preprocess
from metapeft.episodes.episode import EpisodeBatch
from metapeft.learner.labels import refuse_labels, without_ignored
from metapeft.updates.attached import AttachedModel
from metapeft.updates.inputs import join, sizes

_log = logging.getLogger("metapeft")


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
    kinds: tuple[str, ...] = ()  # of the inputs as they were given: "bytes", "floats" or "words", a leaf each

    @property
    def tasks(self) -> int:
        """T."""
        return tree_leaves(self.x)[0].shape[0]

    @property
    def count(self) -> int:
        """B."""
        return tree_leaves(self.x)[0].shape[1]

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


@dataclass(frozen=True, eq=False)
class Parts:
    """The items of episodes by their part: `"support"`, `"query"`, and `"both"`, made when it is first asked for.

    Args:
        support, query: as `moved` gives them; `query` is None where tasks are only adapted.

    Example:
        >>> items = Items(torch.zeros(2, 3, 4), None)
        >>> Parts(items, items)["both"].count, Parts(items).names
        (6, ('support',))
    """

    support: Items
    query: Items | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that there are."""
        return ("support",) if self.query is None else ("support", "query", "both")

    def __post_init__(self) -> None:
        """Raise ValueError where one part was floats and the other bytes, which alone go through preprocessing."""
        given = self.support.kinds, () if self.query is None else self.query.kinds
        if all(given) and given[0] != given[1]:
            raise ValueError(
                f"support_x has {', '.join(given[0])}, query_x {', '.join(given[1])}: only uint8 goes through "
                "preprocessing, so both have to be of one kind; floats from 0 to 1 become uint8 by "
                "(255 * x).round().to(torch.uint8)"
            )

    def __getitem__(self, part: str) -> Items:
        """Raises ValueError where there are no queries."""
        if part == "support":
            return self.support
        if self.query is None:
            raise ValueError("the batch has no query set")
        return self._both if part == "both" else self.query

    @cached_property
    def _both(self) -> Items:
        return self.support.with_items(self["query"])


def _mask(items: Items) -> Tensor:
    if items.mask is not None:
        return items.mask
    like = tree_leaves(items.x)[0]
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)


def checked(items: Items, name: str) -> Items:
    """The items, if labels and mask have the axes of the inputs, those labelled -100 masked; ValueError otherwise.

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
    if items.y is None or items.regression:
        return items
    y, mask = without_ignored(items.y, items.mask, name)
    return dataclasses.replace(items, y=y, mask=mask)


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


def of_batch(batch: EpisodeBatch, model: AttachedModel) -> Parts:
    """Support and query of a batch as `moved` gives them.

    Raises:
        ValueError: what `moved` refuses; class labels that are not 0 .. ways - 1.
    """
    support = moved(Items(batch.support_x, batch.support_y, batch.support_mask), model, "support")
    query = moved(Items(batch.query_x, batch.query_y, batch.query_mask), model, "query")
    known = None if batch.classes is None else batch.ways
    for items, name in ((support, "support"), (query, "query")):
        if items.y is not None and not items.regression:
            refuse_labels(items.y, items.mask, known, name)
    return Parts(support, query)


def moved(items: Items, model: AttachedModel, name: str) -> Items:
    """Checked items on the model's device: uint8 images, other floats and targets in its floats.

    Raises:
        ValueError: what `checked` refuses.
        NotFiniteInput: NaN or infinity in inputs or targets.
    """
    items, like = checked(items, name), model.like
    y = items.y
    refuse_not_finite(items.x, f"{name}_x")
    if y is not None:
        refuse_not_finite(y, f"{name}_y")
        y = y.to(like) if items.regression else y.to(like.device, torch.int64)
    mask = None if items.mask is None else items.mask.to(like.device)
    dtypes = {value.dtype for value in model.backbone.parameters()} or {like.dtype}
    x = items.x
    if len(dtypes) == 1:
        x = mapped(x, lambda value: value.to(like.dtype) if value.is_floating_point() else value)
    _note_raw(x, model)
    kinds = tuple(_kind(leaf) for leaf in tree_leaves(x))
    return Items(model.prepared(x, f"{name}_x"), y, mask, kinds)


def _kind(leaf: Tensor) -> str:
    if leaf.dtype == torch.uint8:
        return "bytes"
    return "floats" if leaf.is_floating_point() else "words"


def _note_raw(x: Any, model: AttachedModel) -> None:
    """Say that floats have hardly been through a data set's preprocessing, which gives both signs."""
    if not isinstance(model.preprocess, Preprocess):
        return
    images = [leaf for leaf in tree_leaves(x) if leaf.is_floating_point()]
    if any(bool(leaf.min() >= 0) for leaf in images):
        _say_raw()


@functools.cache
def _say_raw() -> None:
    _log.warning(
        "floats are taken as they are, and these are all of at least 0, as nothing is that has been through "
        "preprocess=: only uint8 goes through it; floats from 0 to 1 become uint8 by (255 * x).round().to(torch.uint8)"
    )


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

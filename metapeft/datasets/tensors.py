"""Features, tables and tokens: any tensors with a class for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metapeft.base.trees import mapped, tree_leaves
from metapeft.datasets.images import split_hash


class TensorData:
    """Rows of tensors with their classes; `mp.data(x, y)` makes one, an `EpisodeSampler` draws episodes from it.

    Example:
        >>> TensorData(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), ["a", "b"], "train", "mine")
        TensorData(mine, train: 4 rows, 2 classes)
    """

    def __init__(self, x: Any, labels: Tensor, classes: Sequence[str], split: str, name: str) -> None:
        self.x, self.labels, self.classes = x, labels, tuple(classes)
        self.split, self.name = split, name

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, index: Tensor) -> Any:
        """Rows by place: int64 of any shape `(...)` -> the tensors `(..., *row)`, in the structure of x."""

        def rows(leaf: Tensor) -> Tensor:
            found = leaf.index_select(0, index.flatten().to(leaf.device))
            return found.view(*index.shape, *leaf.shape[1:])

        return mapped(self.x, rows)

    @property
    def preprocess(self) -> nn.Module:
        """The identity: rows go to the backbone as they are."""
        return nn.Identity()

    @property
    def split_hash(self) -> str:
        """As that of images: equal hashes, equal class lists in equal order."""
        return split_hash(self.split, self.classes)

    def __repr__(self) -> str:
        return f"TensorData({self.name}, {self.split}: {len(self)} rows, {len(self.classes)} classes)"


def data(
    x: Any, y: Any, *, classes: Sequence[str] | None = None, split: str = "train", name: str = "data"
) -> TensorData:
    """Features or a table, with a class for each row, as a data set to draw episodes from.

    Args:
        x: `(n, ...)` tensor or array, such as features `(n, F)`; or a dict or tuple of them, as a forward takes them.
        y: `(n,)` whole numbers, or names of classes.
        classes: their names, if y has numbers `0 .. len(classes) - 1`; None: the numbers themselves.
        split: `"train"`, `"val"` or `"test"`.
        name: what tables call it.

    Raises:
        ValueError: lengths that differ, NaN or infinity, labels that are no classes.

    Example:
        >>> mine = data(torch.randn(20, 8), ["cat", "dog"] * 10)
        >>> mine.classes, mine.gather(torch.tensor([[0, 3]])).shape
        (('cat', 'dog'), torch.Size([1, 2, 8]))
    """
    rows = mapped(_tensors(x), _plain)
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in tree_leaves(rows)}
    labels, names = _labels(y, classes)
    if lengths != {len(labels)}:
        raise ValueError(
            f"x has {', '.join(map(str, sorted(lengths)))} rows and y {len(labels)}: one class for each row is needed"
        )
    return TensorData(rows, labels, names, split, name)


def _tensors(x: Any) -> Any:
    def one(value: Any) -> Any:
        return torch.as_tensor(value) if isinstance(value, np.ndarray) else value

    if isinstance(x, dict):
        return {key: one(value) for key, value in x.items()}
    return tuple(map(one, x)) if isinstance(x, tuple) else one(x)


def _plain(leaf: Tensor) -> Tensor:
    if leaf.is_floating_point():
        if not bool(leaf.isfinite().all()):
            raise ValueError(
                "x has NaN or infinity: fill or drop the rows with missing values first, such as with torch.nan_to_num"
            )
        return leaf.to(torch.get_default_dtype()) if leaf.dtype == torch.float64 else leaf
    return leaf


def _labels(y: Any, classes: Sequence[str] | None) -> tuple[Tensor, list[str]]:
    given = y.tolist() if isinstance(y, Tensor | np.ndarray) else list(y)
    if given and all(isinstance(label, str) for label in given):
        names = sorted(set(given)) if classes is None else list(classes)
        unknown = set(given) - set(names)
        if unknown:
            raise ValueError(f"y has class {sorted(unknown)[0]!r}, which classes does not have")
        places: dict[Any, int] = {label: place for place, label in enumerate(names)}
    elif given and all(type(label) is int for label in given):
        held = sorted(set(given)) if classes is None else list(range(len(classes)))
        if not set(given) <= set(held):
            raise ValueError(
                f"y runs from {min(given)} to {max(given)}, but classes has {len(held)} names, from 0 on"
            )
        names = list(map(str, held)) if classes is None else list(classes)
        places = {label: place for place, label in enumerate(held)}
    else:
        raise ValueError(
            "y must hold a whole number or a name for each row; for regression, write a family of tasks (docs/data.md)"
        )
    return torch.tensor([places[label] for label in given]), names

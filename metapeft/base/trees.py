"""Inputs as trees of tensors: a tensor, a dict of keyword arguments, or a tuple of positional ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LARGE = 4096  # elements a row, from which on copying once is worth a view of each row


def tree_leaves(x: Any) -> list[Tensor]:
    """The leaves of an input: itself, or the tensors among the values of a dict or tuple.

    Raises:
        ValueError: what is no input.

    Example:
        >>> [len(leaf) for leaf in tree_leaves({"ids": torch.zeros(2), "names": ["a", "b"], "mask": torch.ones(2)})]
        [2, 2]
    """
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Mapping):
        return [value for value in x.values() if isinstance(value, Tensor)]
    if isinstance(x, tuple | list):
        return [value for value in x if isinstance(value, Tensor)]
    raise ValueError(
        f"x={type(x).__name__}: allowed are a tensor, a dict of keyword arguments, a tuple of positional ones"
    )


def mapped(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of an input; what is no tensor passes through.

    Example:
        >>> mapped((torch.zeros(2), None), lambda leaf: leaf + 1)
        (tensor([1., 1.]), None)
    """

    def one(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    if isinstance(x, Mapping):
        return {key: one(value) for key, value in x.items()}
    return tuple(one(value) for value in x) if isinstance(x, tuple | list) else one(x)


def stacked(trees: Sequence[Any]) -> Any:
    """Inputs of one kind, stacked leaf by leaf along a new first axis; what is no tensor is the first's.

    Example:
        >>> stacked([{"x": torch.zeros(3)}, {"x": torch.ones(3)}])["x"].shape
        torch.Size([2, 3])
    """
    columns = iter([torch.stack(leaves) for leaves in zip(*map(tree_leaves, trees))])
    return mapped(trees[0], lambda _: next(columns))


def in_order(pieces: Sequence[Tensor], order: Tensor) -> Tensor:
    """Tensors joined along their first axis: row `i` is row `order[i]` of them all.

    Example:
        >>> in_order([torch.tensor([5, 6]), torch.tensor([7])], torch.tensor([2, 0, 1])).tolist()
        [7, 5, 6]
    """
    if pieces[0][0].numel() < _LARGE:
        return torch.cat(list(pieces)).index_select(0, order.to(pieces[0].device))
    rows = [row for piece in pieces for row in piece.unbind()]
    return torch.stack([rows[place] for place in order.tolist()])

"""Nested dicts, lists and tuples of tensors (a solver's state), as a flat list and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of a nested structure, in order.

    Example:
        >>> import torch
        >>> tensors({"a": torch.tensor(1), "b": [torch.tensor(2), None]})
        [tensor(1), tensor(2)]
    """
    if isinstance(tree, Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for child in children for tensor in tensors(child)]


def rebuild(tree: Any, values: Iterable[Tensor]) -> Any:
    """The same structure with other tensors, in the order of `tensors`.

    Example:
        >>> import torch
        >>> rebuild({"a": torch.tensor(1), "b": [2, torch.tensor(3)]}, [torch.tensor(5), torch.tensor(6)])
        {'a': tensor(5), 'b': [2, tensor(6)]}
    """
    return _rebuild(tree, iter(values))


def _rebuild(tree: Any, values: Iterator[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return next(values)
    if isinstance(tree, dict):
        return {name: _rebuild(child, values) for name, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([_rebuild(child, values) for child in tree])
    return tree

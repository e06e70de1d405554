"""Nests of tuples, lists and dicts that functions and modules take and give, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

#: an argument's position or keyword; of a tensor inside of one, that and which it is
Argument = int | str | tuple[int | str, int]


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in a nest of tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from tensors(part)
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))


def replaced(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nest with other tensors, in the order of `tensors`."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: replaced(part, change) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [replaced(part, change) for part in tree]
        if hasattr(tree, "n_fields"):  # torch.max and its like give such tuples
            return type(tree)(parts)
        return tuple(parts) if isinstance(tree, tuple) else parts
    return tree


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Argument, Tensor]:
    """The tensors that a call is given, those inside of tuples, lists and dicts too.

    Example:
        >>> import torch
        >>> list(arguments((torch.zeros(1), (torch.zeros(1), None)), {"x": torch.zeros(1)}))
        [0, (1, 0), 'x']
    """
    found: dict[Argument, Tensor] = {}
    given: dict[int | str, Any] = dict(enumerate(args))
    given.update(kwargs)
    for key, value in given.items():
        if isinstance(value, Tensor):
            found[key] = value
        else:
            found.update({(key, number): part for number, part in enumerate(tensors(value))})
    return found


def refilled(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[Argument, Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with other tensors, by their place."""
    in_turn = iter([values[key] for key in arguments(args, kwargs)])
    full = replaced((list(args), dict(kwargs)), lambda _: next(in_turn))
    return tuple(full[0]), full[1]

"""Copies of modules: ones that share every tensor, and ones with tensors of their own."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from metapeft.updates.leaf import computed_tensors


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of a module's structure with the same parameter and buffer objects inside, and what hooks compute of them.

    Raises:
        ValueError: the module holds what cannot be copied.
    """
    shared = [*module.parameters(), *module.buffers(), *_computed(module)]
    memo: dict[int, Any] = {id(value): value for value in shared}
    try:
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the structure of {type(module).__name__} cannot be copied ({error}): does a module hold a "
            "computed tensor (weight_norm), an open file or a lock? Remove it first"
        ) from error


def own_copy(module: nn.Module) -> nn.Module:
    """A copy of a module with tensors of its own; what hooks compute of its parameters is computed anew.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> own_copy(layer).weight is layer.weight
        False
    """
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in _computed(module)})


def _computed(module: nn.Module) -> list[Tensor]:
    return [value for part in module.modules() for value in computed_tensors(part).values()]

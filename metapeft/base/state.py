"""States: tensors by name, copied out of a learner and taken over by another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from metapeft.base.arguments import by_name


def copies(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies of tensors by name."""
    return {name: value.detach().clone() for name, value in own.items()}


@torch.no_grad()
def take_over(own: Mapping[str, Tensor], state: Mapping[str, Tensor], partly: bool = False) -> None:
    """Write a state into tensors of the same names, in place.

    Args:
        own: the tensors that are changed. state: name -> tensor; further names are ignored.
        partly: whether names may be missing in `state`, as long as one is there.

    Raises:
        ValueError: names that are missing, shapes that differ; nothing is changed then.

    Example:
        >>> weight = torch.zeros(2)
        >>> take_over({"weight": weight}, {"weight": torch.ones(2), "bias": torch.ones(1)})
        >>> weight
        tensor([1., 1.])
    """
    by_name("tensors", state=state)
    common = [name for name in own if name in state]
    missing = sorted(set(own) - set(state))
    if not common or (missing and not partly):
        raise ValueError(
            f"state has no {missing[0] if common else 'tensor of this learner'}: it belongs to another "
            "backbone or another method"
        )
    for name in common:
        if own[name].shape != state[name].shape:
            raise ValueError(
                f"state has {name} of shape {tuple(state[name].shape)}, the learner {tuple(own[name].shape)}"
            )
    for name in common:
        own[name].copy_(state[name])


def digest(tensors: Mapping[str, Tensor]) -> str:
    """16 digits of the SHA-256 of tensors and their names, in the order of the names.

    Example:
        >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)}) != digest({"b": torch.zeros(2)})
        True
    """
    return sha256(tensors)[:16]


def sha256(tensors: Mapping[str, Tensor], *more: str) -> str:
    """The SHA-256 of tensors and their names, in the order of the names, and of texts beside them."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            found.update(value.flatten().view(torch.uint8).numpy().data)
    for text in more:
        found.update(b"\0" + text.encode())
    return found.hexdigest()

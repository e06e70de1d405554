"""What says that it is large is refused before it is made: by what it would take, and what is free."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metapeft.base.machine.byte_units import shown_bytes
from metapeft.base.machine.memory import free_bytes

_SMALL = 2**28  # bytes, of which nobody asks whether they are there


def refuse_bytes(size: int, what: str) -> None:
    """Raise ValueError for more bytes than are free.

    Args:
        what: what takes them, at the start of the sentence.

    Example:
        >>> refuse_bytes(2**80, "the weights of conv4(width=1000000000)")
        Traceback (most recent call last):
        ValueError: the weights of conv4(width=1000000000) take more memory than any machine has: take smaller sizes
    """
    if size <= _SMALL:
        return
    if size >= 2**63:
        raise ValueError(f"{what} take more memory than any machine has: take smaller sizes")
    free = free_bytes(torch.device("cpu"))
    if size > free:
        raise ValueError(
            f"{what} take {shown_bytes(size)}, and {shown_bytes(free)} are free: take smaller sizes"
        )


def refuse_large(make: Callable[[], Mapping[str, Tensor]], what: str) -> None:
    """Raise ValueError for tensors that would take more bytes than are free.

    Args:
        make: makes them, name -> tensor, of their shapes alone; it is called on torch's meta device, where they take
            nothing.
        what: as for `refuse_bytes`.

    Example:
        >>> refuse_large(lambda: {"a": torch.zeros(2**40, 2**40)}, "the anchors of grid(side=2^40)")
        Traceback (most recent call last):
        ValueError: the anchors of grid(side=2^40) take more memory than any machine has: take smaller sizes
    """
    try:
        with torch.device("meta"):
            made = make()
        sizes = {name: value.numel() * value.element_size() for name, value in made.items()}
    except (RuntimeError, OverflowError, TypeError) as error:
        if "verflow" not in str(error):
            raise
        return refuse_bytes(2**63, what)
    largest = max(sizes, key=sizes.__getitem__, default="")
    named = (
        f", of them {largest} of shape {tuple(made[largest].shape)}," if sum(sizes.values()) > _SMALL else ""
    )
    return refuse_bytes(sum(sizes.values()), what + named)

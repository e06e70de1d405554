"""Dropout masks that are a function of numbers: which input, which dropout, which position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metapeft.base import counter

_AT_ONCE = 2**18  # words that are made together: they and what they are made from fit into a cache


def _signed(word: int) -> int:
    """A word of 64 bits as the int64 that has the same bits."""
    word %= 2**64
    return word - 2**64 if word >= 2**63 else word


_STEP, _FIRST, _SECOND = (_signed(int(word)) for word in (counter.STEP, counter.FIRST, counter.SECOND))
_MIXING = tuple(zip(map(int, counter.SHIFTS), (_FIRST, _SECOND, None)))


def mix(x: Tensor) -> Tensor:
    """`counter.mix` on int64, on any device; changes x in place and returns it.

    Example:
        >>> [hex(word % 2**64) for word in mix(torch.tensor([1, 2])).tolist()]
        ['0x5692161d100b05e5', '0xdbd238973a2b148a']
    """
    for shift, factor in _MIXING:
        x ^= (x >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            x *= factor
    return x


class Masks:
    """Masks for the rows of one forward, 0 or `1 / (1 - p)`; what was made once is kept.

    Word i of a row at a place (the number of the dropout in a forward) is
    `mix(mix(key + (place + 1) STEP) + (i + 1) STEP)`, the streams of `counter`; a value is dropped where its word, as
    a fraction of 2^64, is below p. So a mask depends on its own row alone, not on the rows beside it.

    Args:
        keys: a number a row, `(T, B)` int64, or `(rows,)`.

    Example:
        >>> masks = Masks(torch.tensor([[1, 2]]))
        >>> masks(0, (2, 4), 0.5, torch.zeros(()))
        tensor([[2., 0., 2., 0.],
                [2., 2., 0., 0.]])
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys.flatten()
        self._made: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, place: int, shape: Sequence[int], p: float, like: Tensor) -> Tensor:
        """The mask of a tensor whose first axis holds the rows, or a multiple of them, one after another.

        Args:
            place: number of the dropout. shape: of the mask. p: share that is dropped.
            like: whose type and device the mask gets.
        """
        key = (place, tuple(shape), p, like.dtype)
        if key in self._made:
            return self._made[key]
        mask = self._make(place, shape, p, like)
        # What was made inside of torch.func.grad or jvp has to outlive it, bare; torch 2.6 cannot say what that is.
        bare = getattr(torch.func, "debug_unwrap", None)
        if bare is not None:
            self._made[key] = mask = bare(mask)
        return mask

    def _make(self, place: int, shape: Sequence[int], p: float, like: Tensor) -> Tensor:
        if p >= 1.0:
            return torch.zeros(shape, dtype=like.dtype, device=like.device)
        count = math.prod(shape) // len(self.keys)
        rows = mix(self.keys.to(like.device) + _signed((place + 1) * _STEP)).unsqueeze(1)
        steps = torch.arange(1, count + 1, device=like.device) * _STEP
        below = int(p * 2**64) - 2**63
        parts = torch.split(rows, max(1, _AT_ONCE // max(count, 1)))
        passed = torch.cat([mix(part + steps) >= below for part in parts])
        return passed.to(like.dtype).mul_(1.0 / (1.0 - p)).view(tuple(shape))

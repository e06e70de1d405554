"""Whether two numbers were measured on the same episodes, whatever these are called: by what is in them."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from metapeft.base.trees import tree_leaves
from metapeft.episodes.episode import EpisodeBatch


def fingerprints(batch: EpisodeBatch) -> list[int]:
    """For each task the CRC-32 of its inputs and labels, bit for bit.

    Example:
        >>> x, y = torch.arange(6.0).view(2, 3, 1), torch.zeros(2, 3, dtype=torch.int64)
        >>> both, moved = (fingerprints(EpisodeBatch(v, y, x, y, y[:, :1])) for v in (x, x.roll(1, 1)))
        >>> both == fingerprints(EpisodeBatch(x, y, x, y, y[:, :1])), both == moved
        (True, False)
    """
    parts: tuple[Any, ...] = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    found = [0] * len(batch)
    for tensor in (tensor for part in parts for tensor in tree_leaves(part)):
        rows = _bytes(tensor)
        found = [zlib.crc32(rows[task].numpy().data, crc) for task, crc in enumerate(found)]
    return found


def _bytes(tensor: Tensor) -> Tensor:
    """`(T, bytes)` on the CPU."""
    flat = tensor.detach().cpu().contiguous().flatten(1)
    return flat.view(torch.uint8)

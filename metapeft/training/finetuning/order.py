"""In which batches the rows of an epoch go through: a pure function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from metapeft.base.counter import Words, child, root

BUCKET = 50  # batches whose rows are sorted by length among themselves


def epoch_of_batches(
    count: int,
    batch_size: int,
    seed: int,
    epoch: int,
    lengths: Sequence[int] | None = None,
    shuffled: bool = True,
) -> list[list[int]]:
    """Every row once, in batches; the last may be smaller.

    Args:
        count: of rows. epoch: from 0.
        lengths: of the rows: batches are of rows of about one length, as far as `50 * batch_size` rows, drawn
            at random, allow it, and come in random order. None for batches that are drawn at random.
        shuffled: whether the order is random.

    Example:
        >>> epoch_of_batches(5, 2, seed=0, epoch=0, shuffled=False)
        [[0, 1], [2, 3], [4]]
        >>> sorted(sum(epoch_of_batches(5, 2, seed=0, epoch=3, lengths=[4, 1, 4, 1, 2]), []))
        [0, 1, 2, 3, 4]
    """
    if not shuffled:
        return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    word = int(child(root(seed), _word(epoch))[0])
    generator = torch.Generator().manual_seed(word % 2**63)
    order = torch.randperm(count, generator=generator).tolist()
    if lengths is not None:
        size = BUCKET * batch_size
        parts = (order[start : start + size] for start in range(0, count, size))
        order = [row for part in parts for row in sorted(part, key=lambda row: -lengths[row])]
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    if lengths is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return batches


def _word(number: int) -> Words:
    return np.array([number], dtype=np.uint64)

"""In which batches the rows of an epoch go through: a pure function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from metapeft.base.counter import Words, child, root
from metapeft.training.finetuning.rows import Batch, Rows

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


class Draw:
    """The batches of a training, one a step, epoch after epoch.

    Args:
        rows: what is drawn from; a DataLoader's batch size and order win. seed: of the order.
        bucket: whether batches are of rows of about one length.

    Example:
        >>> from metapeft.training.finetuning.rows import TensorRows
        >>> draw = Draw(TensorRows((torch.arange(5), torch.arange(5))), batch_size=2, seed=0, bucket=True)
        >>> draw.steps, len(draw.batch(2)), torch.equal(draw.batch(7).x, draw.batch(7).x)
        (3, 1, True)
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, bucket: bool) -> None:
        self.rows, self.seed, self.bucket = rows, seed, bucket
        self.batch_size = batch_size if rows.batch_size is None else rows.batch_size
        self.steps = -(-len(rows) // self.batch_size)
        self._epoch: tuple[int, list[list[int]]] | None = None

    def batch(self, step: int) -> Batch:
        """The rows of a step, from 0."""
        epoch, place = divmod(step, self.steps)
        if self._epoch is None or self._epoch[0] != epoch:
            lengths = self.rows.lengths if self.bucket else None
            shuffled = self.rows.shuffled
            batches = epoch_of_batches(len(self.rows), self.batch_size, self.seed, epoch, lengths, shuffled)
            self._epoch = (epoch, batches)
        return self.rows.batch(self._epoch[1][place])


def _word(number: int) -> Words:
    return np.array([number], dtype=np.uint64)

"""Query sets of several samplers made as wide as the widest, so that they stand in one batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from metapeft.base.trees import mapped
from metapeft.episodes.episode import EpisodeBatch


def widened(batch: EpisodeBatch, queries: int, masked: bool) -> EpisodeBatch:
    """Episodes with `queries` query items a class, those that are added masked.

    What is added is a zero image, label 0 and index -1; of inputs in a dict or tuple it is the task's first query.

    Args:
        batch: with classes, as many queries of each or fewer. masked: whether there has to be a mask.

    Example:
        >>> x, y = torch.ones(1, 2, 3), torch.tensor([[0, 1]])
        >>> wide = widened(EpisodeBatch(x, y, x, y, classes=y), 2, masked=True)
        >>> wide.query_y.tolist(), wide.query_mask.tolist(), wide.query_x[0, :, 0].tolist()
        ([[0, 0, 1, 0]], [[True, False, True, False]], [1.0, 0.0, 1.0, 0.0])
    """
    tasks, count = batch.query_y.shape[:2]
    own = count // batch.ways
    if own == queries and (batch.query_mask is not None or not masked):
        return batch
    missing = queries - own
    known = torch.ones(tasks, count, dtype=torch.bool) if batch.query_mask is None else batch.query_mask

    def wider(value: Tensor, padding: Any) -> Tensor:
        by_class = value.view(tasks, batch.ways, own, *value.shape[2:])
        more = torch.as_tensor(padding, dtype=value.dtype, device=value.device)
        more = more.expand(tasks, batch.ways, missing, *value.shape[2:])
        return torch.cat([by_class, more], 2).flatten(1, 2)

    def first(leaf: Tensor) -> Tensor:
        return wider(leaf, leaf[:, :1, None])

    x: Any = batch.query_x
    return dataclasses.replace(
        batch,
        query_x=wider(x, 0) if isinstance(x, Tensor) else mapped(x, first),
        query_y=wider(batch.query_y, 0),
        query_index=None if batch.query_index is None else wider(batch.query_index, -1),
        query_mask=wider(known, False),
    )

"""Sequences of several lengths as one tensor, and batches of several adapters as one input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metapeft.base.trees import tree_leaves
from metapeft.learner.labels import IGNORED
from metapeft.training.finetuning.rows import Batch


def padding_of(field: str, pad_id: int) -> int:
    """What a field is padded with: `input_ids` with `pad_id`, labels with -100, which no loss counts, others with 0."""
    return {"input_ids": pad_id, "labels": IGNORED}.get(field, 0)


def padded(values: Sequence[Tensor], field: str, pad_id: int) -> Tensor:
    """Tensors stacked along a new first axis, each padded at its ends to the largest size of every axis.

    Raises:
        ValueError: other numbers of axes; targets that are floats, of several lengths.

    Example:
        >>> padded([torch.tensor([1, 2]), torch.tensor([3])], "labels", 0)
        tensor([[   1,    2],
                [   3, -100]])
    """
    if len({value.shape for value in values}) == 1:
        return torch.stack(list(values))
    if len({value.dim() for value in values}) != 1 or (field == "labels" and values[0].is_floating_point()):
        shapes = sorted({tuple(value.shape) for value in values})[:3]
        raise ValueError(f"{field} has rows of the shapes {shapes}, which no padding makes one tensor of")
    size = [max(sizes) for sizes in zip(*(value.shape for value in values))]
    result = values[0].new_full((len(values), *size), padding_of(field, pad_id))
    for row, value in zip(result, values):
        row[tuple(slice(0, length) for length in value.shape)] = value
    return result


def together(batches: Sequence[Batch], pad_id: int) -> tuple[Any, Tensor, Tensor]:
    """Batches of several adapters, each padded to the longest, those of fewer rows by their own last row.

    Raises:
        ValueError: inputs that have to be padded, and no attention mask.

    Returns: leaves of x `(T, B, ...)`, y `(T, B, ...)`, and `(T, B)`, True for rows that are there.

    Example:
        >>> two = [Batch(torch.ones(2, 3), torch.zeros(2)), Batch(torch.zeros(1, 3), torch.ones(1))]
        >>> x, y, there = together(two, pad_id=0)
        >>> x.shape, there
        (torch.Size([2, 2, 3]), tensor([[ True,  True],
                [ True, False]]))
    """
    most = max(map(len, batches))
    there = torch.tensor([[row < len(batch) for row in range(most)] for batch in batches])

    def filled(value: Tensor) -> Tensor:
        missing = most - len(value)
        return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]) if missing else value

    def joined(values: Sequence[Tensor], field: str) -> Tensor:
        return padded([filled(value) for value in values], field, pad_id)

    y = joined([batch.y for batch in batches], "labels")
    inputs = [batch.x for batch in batches]
    shapes = {tuple(value.shape[1:] for value in tree_leaves(x)) for x in inputs}
    if len(shapes) > 1 and not (isinstance(inputs[0], Mapping) and "attention_mask" in inputs[0]):
        raise ValueError(
            f"inputs have rows of the shapes {sorted(shapes)[:2]} in the batches of several updates: without an "
            "attention_mask, which says where there is padding, they must agree"
        )
    if isinstance(inputs[0], Mapping):
        return {key: joined([x[key] for x in inputs], key) for key in inputs[0]}, y, there
    if isinstance(inputs[0], tuple | list):
        return tuple(joined(leaves, "x") for leaves in zip(*inputs)), y, there
    return joined(inputs, "x"), y, there

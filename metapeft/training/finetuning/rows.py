"""Data that is no episode: rows of an input and a target, gathered into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from metapeft.base.state import digest
from metapeft.base.trees import mapped, tree_leaves


@dataclass(frozen=True)
class Batch:
    """Rows that go through a forward together: leaves of x `(B, ...)`, targets y `(B, ...)`.

    Example:
        >>> batch = Batch({"ids": torch.arange(6).view(3, 2)}, torch.arange(3))
        >>> len(batch), batch.rows(slice(1, 3)).y
        (3, tensor([1, 2]))
    """

    x: Any
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, which: slice) -> Batch:
        """Some of the rows."""
        return Batch(mapped(self.x, lambda value: value[which]), self.y[which])


class Rows(Protocol):
    """What every kind of data is read as.

    Attributes:
        lengths: of the rows' token sequences, by which batches are bucketed; None where rows have none.
        batch_size: what a DataLoader brings along; None elsewhere.
        shuffled: whether an epoch is in random order; a DataLoader says it.
    """

    @property
    def lengths(self) -> Sequence[int] | None: ...

    @property
    def batch_size(self) -> int | None: ...

    @property
    def shuffled(self) -> bool: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows of these numbers, padded to the longest of them."""
        ...


class TensorRows:
    """A pair `(x, y)` of tensors; x may also be a dict or tuple of tensors, `(n, ...)` each.

    Raises:
        ValueError: what is no such pair, other numbers of rows in x than in y, no rows at all.

    Example:
        >>> rows = TensorRows((torch.arange(6.0).view(3, 2), torch.arange(3)))
        >>> len(rows), rows.batch([2, 0]).x
        (3, tensor([[4., 5.],
                [0., 1.]]))
    """

    lengths = None
    batch_size = None
    shuffled = True

    def __init__(self, pair: tuple[Any, Any], name: str = "train") -> None:
        self.x, self.y = pair
        if not isinstance(self.y, Tensor):
            raise ValueError(
                f"{name}[1] is of type {type(self.y).__name__}: a pair (x, y) of tensors is needed, or a data set"
            )
        sizes = [len(value) if value.dim() else 0 for value in (*tree_leaves(self.x), self.y)]
        if len(set(sizes)) != 1 or len(sizes) == 1:
            raise ValueError(
                f"{name} is a pair of {sizes[:-1]} inputs and {sizes[-1]} targets: as many of each"
            )
        if not sizes[0]:
            raise ValueError(f"{name} has no rows")

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows of these numbers."""
        chosen = torch.as_tensor(indices, device=self.y.device)
        return Batch(mapped(self.x, lambda value: value[chosen.to(value.device)]), self.y[chosen])


def said_of(rows: Rows) -> dict[str, Any]:
    """How a run folder knows data again: the number of rows, and a hash of the first few.

    Example:
        >>> said_of(TensorRows((torch.zeros(3, 2), torch.arange(3))))["rows"]
        3
    """
    first = rows.batch(range(min(8, len(rows))))
    leaves = first.x if isinstance(first.x, Mapping) else dict(enumerate(tree_leaves(first.x)))
    named = {f"x.{name}": value for name, value in leaves.items() if isinstance(value, Tensor)}
    return {"rows": len(rows), "first": digest({**named, "y": first.y})}

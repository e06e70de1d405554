"""Map-style data sets, Hugging Face tables and DataLoaders as rows: items are read, sorted out and padded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from metapeft.training.finetuning.padding import padded
from metapeft.training.finetuning.rows import Batch, Rows, TensorRows

LABELS = ("labels", "label")


class ItemRows:
    """A map-style data set whose items are pairs `(x, y)`, or dicts with `"labels"` (or `"label"`) among their fields.

    Of a dict, fields that are numbers, lists of numbers or tensors go to the forward, as far as it takes them by name;
    texts are left out. Sequences of several lengths are padded to the longest of the batch.

    Args:
        data: with `len(data)` and `data[i]`. forward: of the backbone, for the names that it takes.
        pad_id: what `input_ids` are padded with. name: of the argument, for messages.
        batch_size, shuffled: what a DataLoader said.

    Raises:
        ValueError: no rows, items of another kind, a dict without labels or without a field that the forward takes.

    Example:
        >>> rows = ItemRows([(torch.zeros(2), 1), (torch.ones(2), 0)])
        >>> rows.batch([1, 0]).y
        tensor([0, 1])
    """

    def __init__(
        self,
        data: Any,
        forward: Callable[..., Any] | None = None,
        pad_id: int = 0,
        name: str = "train",
        batch_size: int | None = None,
        shuffled: bool = True,
    ) -> None:
        self.data, self.pad_id, self.name = data, pad_id, name
        self.batch_size, self.shuffled = batch_size, shuffled
        if not len(data):
            raise ValueError(f"{name} has no rows")
        first = data[0]
        self.takes, self.takes_mask = _taken(forward)
        self.label = next((key for key in LABELS if isinstance(first, Mapping) and key in first), None)
        self._check(first)
        self._lengths: list[int] | None = None

    def _check(self, first: Any) -> None:
        if isinstance(first, Mapping):
            if self.label is None:
                raise ValueError(
                    f"{self.name}[0] has the fields {sorted(first)}: one of them must be 'labels' or 'label'"
                )
            if not self._fields(first):
                raise ValueError(
                    f"{self.name}[0] has the fields {sorted(first)}, none of which the backbone's forward takes as "
                    "numbers: tokenise texts first"
                )
        elif not (isinstance(first, tuple | list) and len(first) == 2):
            raise ValueError(
                f"{self.name}[0] is of type {type(first).__name__}: an item is a pair (x, y), or a dict with 'labels'"
            )

    @property
    def lengths(self) -> list[int] | None:
        """Numbers of tokens, of data whose items have `input_ids`."""
        if not isinstance(self.data[0], Mapping) or "input_ids" not in self.data[0]:
            return None
        if self._lengths is None:
            table = hasattr(
                self.data, "column_names"
            )  # one column of a Hugging Face table, without the others
            ids = (
                self.data["input_ids"]
                if table
                else (item["input_ids"] for item in map(self._item, range(len(self))))
            )
            self._lengths = [len(value) for value in ids]
        return self._lengths

    def _item(self, index: int) -> Any:
        return self.data[index]

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The items of these numbers, padded to the longest of them."""
        items = [self.data[int(index)] for index in indices]
        if self.label is None:
            x: Any = [item[0] for item in items]
            y = [_tensor(item[1]) for item in items]
            if isinstance(x[0], Mapping):
                return Batch(self._joined([self._fields(fields) for fields in x]), padded(y, "labels", 0))
            return Batch(torch.stack([_tensor(value) for value in x]), padded(y, "labels", 0))
        y = [_tensor(item[self.label]) for item in items]
        return Batch(self._joined([self._fields(item) for item in items]), padded(y, "labels", 0))

    def _fields(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        """What of an item goes to the forward, as tensors."""
        found = {}
        for key, value in item.items():
            if key not in LABELS and (self.takes is None or key in self.takes) and _is_numeric(value):
                found[key] = _tensor(value)
        return found

    def _joined(self, fields: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        if "attention_mask" not in fields[0]:
            ragged = any(
                len({value.shape for value in own}) > 1 for own in zip(*(item.values() for item in fields))
            )
            if self.takes_mask and "input_ids" in fields[0]:
                for item in fields:
                    item["attention_mask"] = torch.ones_like(item["input_ids"])
            elif ragged:
                raise ValueError(
                    f"{self.name} has items of several lengths, and the backbone's forward takes no attention_mask, so "
                    "that padding would count: cut or pad the items to one length"
                )
        return {key: padded([item[key] for item in fields], key, self.pad_id) for key in fields[0]}


def read_rows(data: Any, backbone: nn.Module | None = None, pad_id: int = 0, name: str = "train") -> Rows:
    """Any kind of data as rows.

    Args:
        data: a pair `(x, y)` of tensors, a map-style data set, a Hugging Face table, a `DataLoader`.
        backbone: whose forward says which fields of an item it takes.

    Raises:
        ValueError: what cannot be read by number of row, and what `TensorRows` and `ItemRows` refuse.

    Example:
        >>> loader = DataLoader([(torch.zeros(2), 1), (torch.ones(2), 0)], batch_size=2)
        >>> rows = read_rows(loader)
        >>> rows.batch_size, rows.shuffled
        (2, False)
    """
    forward = None if backbone is None else backbone.forward
    if isinstance(data, DataLoader):
        return _of_loader(data, forward, pad_id, name)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], int | float):
        return TensorRows(data, name)
    if isinstance(data, IterableDataset) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise ValueError(
            f"{name} is of type {type(data).__name__}: allowed are a pair (x, y) of tensors, a data set with "
            "len() and [i], a Hugging Face table, a DataLoader of one of them"
        )
    return ItemRows(data, forward, pad_id, name)


class CollatedRows(ItemRows):
    """The rows of a DataLoader with a collate function of the user's own, which makes the batches."""

    def __init__(self, collate: Callable[[list[Any]], Any], *args: Any) -> None:
        super().__init__(*args)
        self.collate = collate

    def batch(self, indices: Sequence[int]) -> Batch:
        """What the collate function makes of these items."""
        made = self.collate([self.data[int(index)] for index in indices])
        if isinstance(made, Mapping) and self.label is not None:
            key = next((key for key in LABELS if key in made), self.label)
            return Batch(self._fields(made), _tensor(made[key]))
        if isinstance(made, tuple | list) and len(made) == 2:
            x = self._fields(made[0]) if isinstance(made[0], Mapping) else made[0]
            return Batch(x, _tensor(made[1]))
        raise ValueError(
            f"{self.name}: its collate_fn makes a {type(made).__name__}, allowed are (x, y) and a dict with 'labels'"
        )


def _of_loader(loader: DataLoader[Any], forward: Callable[..., Any] | None, pad_id: int, name: str) -> Rows:
    sampler = loader.sampler
    known = type(sampler) in (RandomSampler, SequentialSampler) and loader.batch_size is not None
    if isinstance(loader.dataset, IterableDataset) or not known or getattr(sampler, "replacement", False):
        raise ValueError(
            f"{name} is a DataLoader that draws by {type(sampler).__name__} of its own: a run that can be resumed "
            "needs shuffle=True or False on a data set with len() and [i]; give that data set itself"
        )
    shuffled = isinstance(sampler, RandomSampler)
    plain = torch.utils.data.default_collate
    if loader.collate_fn in (plain, getattr(torch.utils.data._utils.collate, "default_collate", plain)):
        return ItemRows(loader.dataset, forward, pad_id, name, loader.batch_size, shuffled)
    return CollatedRows(loader.collate_fn, loader.dataset, forward, pad_id, name, loader.batch_size, shuffled)


def _taken(forward: Callable[..., Any] | None) -> tuple[set[str] | None, bool]:
    """The names that a forward takes, None for any, and whether an attention mask is among them."""
    if forward is None:
        return None, False
    parameters = inspect.signature(forward).parameters
    names = {name for name in parameters if name not in LABELS}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and len(parameters) == 1
    return (None, False) if anything else (names, "attention_mask" in names)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, Tensor | Number) or hasattr(value, "dtype"):
        return True
    return isinstance(value, list | tuple) and len(value) > 0 and _is_numeric(value[0])


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value)

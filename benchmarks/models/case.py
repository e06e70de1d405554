"""One architecture of the matrix: how it is built, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import metapeft as mp

Inputs = Callable[[torch.Generator, int], Any]


@dataclass(frozen=True)
class Case:
    """A model and its inputs.

    Args:
        name: in the matrix. make: builds it, with random weights.
        inputs: `inputs(generator, rows)` gives its arguments, leaves `(rows, ...)`.
        format: of the updates, on `"all"`. options: of `attach`. second: whether it can be differentiated twice.
        items: inputs of a task; of one image torch's batch norm has wrong gradients.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    format: Any = field(default_factory=lambda: mp.LoRA(2))
    options: Mapping[str, Any] = field(default_factory=dict)
    second: bool = True
    items: int = 2


def words(vocabulary: int = 40, length: int = 6, **more: Inputs) -> Inputs:
    """Token ids with a mask that leaves out one input's last, as keywords; `more`: further ones."""

    def make(source: torch.Generator, rows: int) -> dict[str, Any]:
        ids = torch.randint(3, vocabulary, (rows, length), generator=source)
        mask = torch.ones_like(ids)
        mask[1::2, -2:] = 0
        return {
            "input_ids": ids,
            "attention_mask": mask,
            **{k: v(source, rows) for k, v in more.items()},
        }

    return make


def ids(vocabulary: int = 40, length: int = 6, **more: Any) -> Inputs:
    """Token ids alone; `more`: further keywords, a value, or a function of generator and rows."""

    def make(source: torch.Generator, rows: int) -> dict[str, Any]:
        own = {k: v(source, rows) if callable(v) else v for k, v in more.items()}
        return {"input_ids": torch.randint(3, vocabulary, (rows, length), generator=source), **own}

    return make


def integers(high: int, *shape: int) -> Inputs:
    """Whole numbers below `high`, `(rows, *shape)`."""
    return lambda source, rows: torch.randint(high, (rows, *shape), generator=source)


def floats(*shape: int) -> Inputs:
    """Normal numbers, `(rows, *shape)`."""

    def make(source: torch.Generator, rows: int) -> Tensor:
        return torch.randn(rows, *shape, generator=source, dtype=torch.float64)

    return make


def keywords(**values: Inputs) -> Inputs:
    """Each by its name."""
    return lambda source, rows: {name: make(source, rows) for name, make in values.items()}


def images(size: int = 32, channels: int = 3) -> Inputs:
    """Images `(rows, channels, size, size)`."""
    return floats(channels, size, size)


def pixels(size: int = 32, channels: int = 3) -> Inputs:
    """Images as transformers takes them, by keyword."""
    return keywords(pixel_values=floats(channels, size, size))


class Then(nn.Module):
    """A body, and a linear layer on what `read` takes of its output."""

    def __init__(
        self, body: nn.Module, read: Callable[[Any], Tensor], features: int, outputs: int = 3
    ) -> None:
        super().__init__()
        self.body, self.read, self.classify = body, read, nn.Linear(features, outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.classify(self.read(self.body(*args, **kwargs)))

"""Small problems of fine-tuning: rows of tokens, a tiny BERT, a plain loop that knows nothing of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from tests.updates.networks import tiny


def bert() -> nn.Module:
    """A classifier of two classes, in float64, without dropout."""
    transformers = pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")
    torch.manual_seed(0)
    return tiny(transformers, "bert").double().eval()


def sentences(count: int, seed: int, longest: int = 7) -> list[dict[str, Any]]:
    """Items as a tokenizer makes them: lists of several lengths, a label, and a text that no forward takes."""
    generator = torch.Generator().manual_seed(seed)

    def whole(high: int, low: int = 0) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    items = []
    for number in range(count):
        ids = [whole(11, 1) for _ in range(whole(longest + 1, 2))]
        items.append(
            {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "label": whole(2),
                "sentence": f"text {number}",
            }
        )
    return items


class Listed:
    """A map-style data set of items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class ByHand(nn.Module):
    """A network of two linear layers whose first carries LoRA, written out."""

    def __init__(self, net: nn.Module, start: dict[str, Tensor], scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale
        self.a = nn.Parameter(start["0.weight.A"][0].clone())
        self.b = nn.Parameter(start["0.weight.B"][0].clone())

    def forward(self, x: Tensor) -> Tensor:
        first = F.linear(x, self.net[0].weight + self.scale * self.b @ self.a, self.net[0].bias)
        return self.net[2](self.net[1](first))


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def rows(count: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long()


def attached(**options: Any) -> mp.AttachedModel:
    return mp.attach(net(), mp.LoRA(2, 4.0), targets="0.weight", **options)

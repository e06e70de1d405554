"""Small networks of torch's own layers for the matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Translator(nn.Module):
    """`nn.Transformer` from a sequence to itself, averaged and classified."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = batch_first
        self.net = nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=batch_first)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = x if self.first else x.transpose(0, 1)
        y = self.net(x, x.flip(0 if not self.first else 1))
        return self.last(y.mean(1 if self.first else 0))


class _Encoder(nn.Module):
    def __init__(self, batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.first = batch_first
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=batch_first, **options)
        self.net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.net(x if self.first else x.transpose(0, 1))
        return self.last(y.mean(1 if self.first else 0))


def encoder(batch_first: bool = True, **options: Any) -> nn.Module:
    """A transformer encoder of two layers."""
    return _Encoder(batch_first, **options)


class Loose(nn.Module):
    """An encoder with a token and positions that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.cls, self.pos = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(6, 8))
        self.body = encoder()

    def forward(self, x: Tensor) -> Any:
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)
        return self.body(x + self.pos)


class Recurrent(nn.Module):
    """A recurrent layer whose last output is classified."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.first = batch_first
        self.net: nn.Module = kind(4, 5, batch_first=batch_first, **options)  # type: ignore[arg-type]
        self.last = nn.Linear(10 if options.get("bidirectional") else 5, 3)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.net(x if self.first else x.transpose(0, 1))
        return self.last(y[:, -1] if self.first else y[-1])


class Steps(nn.Module):
    """A cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.GRUCell(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        state = x.new_zeros(x.shape[0], 5)
        for part in x.unbind(1):
            state = self.cell(part, state)
        return self.last(state)


class OwnMatrix(nn.Module):
    """A matrix that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.last = nn.Parameter(torch.zeros(6, 4)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.tanh(F.linear(x, self.matrix)))


class Called(nn.Linear):
    """A linear layer with a scale of its own."""

    def forward(self, x: Tensor) -> Any:
        return 2.0 * super().forward(x)


class _Standard(nn.Conv2d):
    def forward(self, x: Tensor) -> Any:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Standardised(nn.Sequential):
    """Convolutions with standardised weights."""

    def __init__(self) -> None:
        super().__init__(_Standard(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


class Named(nn.Module):
    """Two layers, the second under a given name."""

    def __init__(self, name: str, kind: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.body = kind(4, 6)
        self.name = name
        self.add_module(name, nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Any:
        found: Tensor = self.get_submodule(self.name)(torch.tanh(self.body(x)))
        return found


class Thrice(nn.Module):
    """One layer that acts three times."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        for _ in range(3):
            x = torch.tanh(self.same(x))
        return self.last(x)


class Siamese(nn.Module):
    """One body on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.last(torch.tanh(self.body(a)) - torch.tanh(self.body(b)))


class Experts(nn.Module):
    """Each input goes to one of two experts, which run on rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList([nn.Linear(4, 3) for _ in range(2)])

    def forward(self, x: Tensor) -> Any:
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        y = x.new_zeros(x.shape[0], 3)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            y = y.index_add(0, rows, expert(x[rows]) * weight[rows, None])
        return y


class Graph(nn.Module):
    """Message passing over a dense adjacency that all inputs share."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)
        self.adjacency: Tensor
        self.register_buffer("adjacency", torch.eye(5) + torch.ones(5, 5) / 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.adjacency @ self.one(x))
        return self.two((self.adjacency @ x).mean(1))

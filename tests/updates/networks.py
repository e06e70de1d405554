"""Networks that several tests of updates use."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """Embedding and output layer share one table, registered in either order."""

    def __init__(self, linear_first: bool) -> None:
        super().__init__()
        layers = {"words": nn.Embedding(7, 4), "output": nn.Linear(4, 7, bias=False)}
        for name in sorted(layers, reverse=not linear_first):
            self.add_module(name, layers[name])
        self.output.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(self.words(x)))


class Attention(nn.Module):
    """Self- or cross-attention with the arguments of one call fixed."""

    def __init__(self, batch_first: bool, cross: bool, weights: bool = False, **options: object) -> None:
        super().__init__()
        sizes = {"kdim": 3, "vdim": 5} if cross else {}
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **sizes)
        self.batch_first, self.cross, self.weights, self.options = batch_first, cross, weights, options

    def forward(self, x: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        parts = (x, key, value) if self.cross else (x, x, x)
        if not self.batch_first:
            parts = tuple(part.transpose(0, 1) for part in parts)
        options = {"need_weights": self.weights, **self.options}
        y, weights = self.attention(*parts, key_padding_mask=padding, **options)
        return weights if self.weights else (y if self.batch_first else y.transpose(0, 1))

"""Networks that several tests of updates use."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp

#: every backbone of the table, and the shape of one of its inputs
OURS = {
    "conv4": (lambda: mp.backbones.conv4(ways=3, channels=1, width=4), (1, 28, 28)),
    "resnet12": (lambda: mp.backbones.resnet12(ways=3, channels=1, width=4, size=16), (1, 16, 16)),
    "vit": (lambda: mp.backbones.vit(ways=3, width=8, depth=1, heads=2), (1, 28, 28)),
    "mixer": (
        lambda: mp.backbones.mixer(ways=3, channels=1, size=16, patch=4, width=8, depth=1),
        (1, 16, 16),
    ),
    "mlp": (lambda: mp.backbones.mlp(6, 3, hidden=(5, 4)), (6,)),
}


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


class Block(nn.Module):
    """The basic block of He et al. 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


def resnet18(width: int = 4) -> nn.Module:
    """ResNet-18 with narrow layers."""
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks = [
        Block(widths[stage] if first else widths[stage + 1], widths[stage + 1], 2 if first and stage else 1)
        for stage in range(4)
        for first in (True, False)
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 5))


def tiny(transformers: ModuleType, kind: str) -> nn.Module:
    """A random transformer of two layers."""
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=12,
            num_labels=3,
        )
        return transformers.BertForSequenceClassification(config)
    if kind == "bert, tied":
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12
        )
        return transformers.BertForMaskedLM(config)
    config = transformers.GPT2Config(
        vocab_size=20,
        n_embd=8,
        n_layer=2,
        n_head=2,
        n_positions=8,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config)


def text(tasks: int, padded: bool = True) -> dict[str, Any]:
    source = torch.Generator().manual_seed(0)
    words = torch.randint(1, 20, (tasks, 2, 5), generator=source)
    mask = torch.ones_like(words)
    if padded:
        mask[:, 1, 3:] = 0
    return {"input_ids": words, "attention_mask": mask}

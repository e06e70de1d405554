"""The backbones as their papers write them: functions of weights by name, of one batch, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def batch_norm(p: Weights, name: str, x: Tensor) -> Tensor:
    """`(x - mean) / sqrt(variance + 1e-5) * weight + bias` of each channel, by the buffers."""
    parts = (p[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias"))
    mean, variance, weight, bias = parts
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def layer_norm(p: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"]
        + p[f"{name}.bias"]
    )


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def convolution(p: Weights, name: str, x: Tensor) -> Tensor:
    """Of the same size: the sum over the places of the kernel, each a linear map of the channels."""
    weight = p[f"{name}.weight"]
    reach = weight.shape[-1] // 2
    padded = F.pad(x, (reach,) * 4)
    height, width = x.shape[-2:]
    total = x.new_zeros(len(x), len(weight), height, width)
    for i in range(weight.shape[-2]):
        for j in range(weight.shape[-1]):
            total += torch.einsum(
                "oc,bchw->bohw", weight[:, :, i, j], padded[..., i : i + height, j : j + width]
            )
    return total + p[f"{name}.bias"].view(-1, 1, 1) if f"{name}.bias" in p else total


def pooled(x: Tensor) -> Tensor:
    """The largest of each two by two; a last odd row or column is left out."""
    height, width = (side // 2 * 2 for side in x.shape[-2:])
    x = x[..., :height, :width]
    return torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def patches(p: Weights, x: Tensor) -> Tensor:
    """Tokens `(B, (size / patch)^2, width)`, row by row, each a linear map of its pixels."""
    weight = p["patches.weight"]
    side = weight.shape[-1]
    cut = x.unflatten(-2, (-1, side)).unflatten(-1, (-1, side))  # (B, channels, rows, side, columns, side)
    return torch.einsum("bcripj,ocij->brpo", cut, weight).flatten(1, 2) + p["patches.bias"]


def conv4(p: Weights, x: Tensor, blocks: int = 4, neck: int | None = None, **_: Any) -> Tensor:
    for block in range(1, blocks + 1):
        x = pooled(batch_norm(p, f"norm{block}", convolution(p, f"conv{block}", x)).clamp_min(0))
    flat = x.flatten(1)
    return linear(p, "classifier", flat if neck is None else linear(p, "neck", flat))


def resnet12(p: Weights, x: Tensor, **_: Any) -> Tensor:
    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    for block in (f"block{number}" for number in range(1, 5)):
        hidden = x
        for layer in (1, 2, 3):
            hidden = convolution(p, f"{block}.conv{layer}", leaky(hidden) if layer > 1 else hidden)
            hidden = batch_norm(p, f"{block}.norm{layer}", hidden)
        shortcut = batch_norm(p, f"{block}.shortcut_norm", convolution(p, f"{block}.shortcut_conv", x))
        x = pooled(leaky(hidden + shortcut))
    return linear(p, "classifier", x.mean((-2, -1)))


def mixer(p: Weights, x: Tensor, depth: int, **_: Any) -> Tensor:
    x = patches(p, x)
    for block in (f"blocks.{number}" for number in range(depth)):
        turned = layer_norm(p, f"{block}.norm1", x).mT
        x = x + linear(p, f"{block}.token2", gelu(linear(p, f"{block}.token1", turned))).mT
        hidden = linear(p, f"{block}.channel1", layer_norm(p, f"{block}.norm2", x))
        x = x + linear(p, f"{block}.channel2", gelu(hidden))
    return linear(p, "classifier", layer_norm(p, "norm", x).mean(1))


def vit(p: Weights, x: Tensor, depth: int, heads: int, **_: Any) -> Tensor:
    x = patches(p, x) + p["position.weight"]
    for block in (f"blocks.{number}" for number in range(depth)):
        seen, mixed = layer_norm(p, f"{block}.norm1", x), []
        of = {part: linear(p, f"{block}.attention.{part}", seen) for part in ("query", "key", "value")}
        for own in zip(*(value.chunk(heads, -1) for value in of.values())):
            query, key, value = own
            mixed.append(torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1) @ value)
        x = x + linear(p, f"{block}.attention.output", torch.cat(mixed, -1))
        hidden = gelu(linear(p, f"{block}.linear1", layer_norm(p, f"{block}.norm2", x)))
        x = x + linear(p, f"{block}.linear2", hidden)
    return linear(p, "classifier", layer_norm(p, "norm", x).mean(1))


def mlp(p: Weights, x: Tensor, hidden: tuple[int, ...] = (40, 40), **_: Any) -> Tensor:
    x = x.flatten(1)
    for layer in range(1, len(hidden) + 1):
        x = linear(p, f"linear{layer}", x).clamp_min(0)
    return linear(p, "classifier", x)


#: every backbone of the table
GRID: dict[str, Callable[..., Tensor]] = {
    "conv4": conv4, "resnet12": resnet12, "mixer": mixer, "vit": vit, "mlp": mlp,
}  # fmt: skip

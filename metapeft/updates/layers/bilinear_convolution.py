"""Convolution as a bilinear map, whose derivatives of every order are convolutions of the same three kinds.

By `<y, conv(x, W)> = <x, to_input(y, W)> = <W, to_weight(x, y)>` the adjoints of each of the three are the other two.
(Torch's own second derivative takes `to_weight` for a convolution with a kernel as large as an image, and goes
through groups one by one.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.updates.layers.bilinear_map import bilinear

Pair = tuple[int, int]


def convolve2d(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """`F.conv2d(x, weight, None, ...)` of `x` `(rows, C, H, W)`.

    Weights with an axis more in front, `(T, out, C/groups, k, k)`, are each task's own, on its part of the rows.

    Example:
        >>> convolve2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), (1, 1), (0, 0), (1, 1), 1)
        tensor([[[[4.]]]])
    """
    last = x.stride(1) == 1 and x.shape[1] > 1
    layout = torch.channels_last if last else torch.contiguous_format
    options, tasks = (stride, padding, dilation, groups), None if weight.dim() == 4 else weight.shape[0]
    rows = (x.shape[0] // (tasks or 1), *x.shape[1:])
    return bilinear(Convolution("conv", options, rows, tuple(weight.shape[-4:]), layout, tasks), x, weight)


@dataclass(frozen=True)
class Convolution:
    """conv takes `(x, W)` to y, to_input `(y, W)` to x, to_weight `(x, y)` to W.

    Args:
        options: stride, padding, dilation, groups. x, weight: the shapes, of one task. format: of x in memory.
        tasks: T where each has weights of its own: then one convolution after the other, within one node of the graph.
    """

    kind: Literal["conv", "to_input", "to_weight"]
    options: tuple[Any, ...]
    x: tuple[int, ...]
    weight: tuple[int, ...]
    format: torch.memory_format
    tasks: int | None = None

    def value(self, a: Tensor, b: Tensor) -> Tensor:
        if self.tasks is None:
            return self._one(a, b)
        to_weight = self.kind == "to_weight"
        pairs = zip(a.chunk(self.tasks), b.chunk(self.tasks) if to_weight else b.unbind())
        found = [self._one(*pair) for pair in pairs]
        return torch.stack(found) if to_weight else torch.cat(found)

    def _one(self, a: Tensor, b: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.options
        if self.kind == "conv":
            return F.conv2d(a, b, None, stride, padding, dilation, groups)
        back = self.kind == "to_input"
        shape, format = (self.x, self.format) if back else (self.weight, torch.contiguous_format)
        like = torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=format)
        y, x, weight = (a, like, b) if back else (b, a, like)
        found = torch.ops.aten.convolution_backward(
            y, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [back, not back, False]
        )
        result: Tensor = found[0 if back else 1]
        return result

    def adjoint_first(self, b: Tensor, c: Tensor) -> Tensor:
        if self.kind == "to_weight":
            return bilinear(replace(self, kind="to_input"), b, c)
        return bilinear(replace(self, kind="to_input" if self.kind == "conv" else "conv"), c, b)

    def adjoint_second(self, a: Tensor, c: Tensor) -> Tensor:
        if self.kind == "to_weight":
            return bilinear(replace(self, kind="conv"), a, c)
        x, y = (a, c) if self.kind == "conv" else (c, a)
        return bilinear(replace(self, kind="to_weight"), x, y)

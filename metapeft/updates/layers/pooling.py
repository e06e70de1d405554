"""Max-pooling whose derivatives of every order keep the order in memory of its input.

Torch's own second derivative takes maps whose channels come last apart and puts them together again, at more cost
than the pooling itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.updates.layers.function import Function
from metapeft.updates.layers.linear_map import linear, more_rows


def max_pool(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """`pool(x)` for `x` `(rows, C, H, W)`; with the places k of the maxima fixed it is `x -> x[k]`.

    Example:
        >>> max_pool(nn.MaxPool2d(2), torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]))
        tensor([[[[4.]]]])
    """
    values = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    options = tuple([v, v] if isinstance(v, int) else list(v) for v in values)
    last = x.stride(1) == 1 and x.shape[1] > 1
    layout = torch.channels_last if last else torch.contiguous_format
    y, _ = _MaxPool.apply(x, Taken(options, pool.ceil_mode, tuple(x.shape[2:]), layout))
    pooled: Tensor = y
    return pooled


@dataclass(frozen=True)
class Taken:
    """`x -> x[k]` at flat places k `(rows, C, h, w)`, or its adjoint: maps that are g there and 0 elsewhere.

    Args:
        options, ceil: of the pooling, as torch's kernels take them. size: `(H, W)`. format: of maps in memory.
    """

    options: tuple[list[int], ...]
    ceil: bool
    size: tuple[int, ...]
    format: torch.memory_format
    back: bool = False

    def adjoint(self) -> Taken:
        return replace(self, back=not self.back)

    def value(self, x: Tensor, index: Tensor | None) -> Tensor:
        if index is None:
            raise TypeError("a pooling's places are missing")
        if self.back:
            shape = (*x.shape[:2], *self.size)
            like = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=self.format)
            put: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
                x, like, *self.options, self.ceil, index
            )
            return put
        if self.format is torch.contiguous_format:
            return x.flatten(2).gather(2, index.flatten(2)).view(index.shape)
        places = index.permute(0, 2, 3, 1)  # along rows of channels
        flat = x.permute(0, 2, 3, 1).flatten(1, 2).gather(1, places.flatten(1, 2))
        return flat.view(places.shape).permute(0, 3, 1, 2)


class _MaxPool(Function):
    """Maxima and their places."""

    @staticmethod
    def forward(x: Tensor, taken: Taken) -> tuple[Tensor, Tensor]:
        y, places = torch.ops.aten.max_pool2d_with_indices(x, *taken.options, taken.ceil)
        return y, places

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Taken], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # none of zeros for the places
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])
        ctx.taken = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        return None if g is None else linear(ctx.taken.adjoint(), g, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> tuple[Tensor, None]:
        return linear(ctx.taken, tangent, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, dims: tuple[int, None], x: Tensor, taken: Taken) -> tuple[Any, tuple[int, int]]:
        found = _MaxPool.apply(more_rows(x, dims[0], info.batch_size), taken)
        y, places = (value.unflatten(0, (info.batch_size, -1)) for value in found)
        return (y, places), (0, 0)

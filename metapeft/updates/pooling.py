"""Max-pooling whose derivatives of every order keep the order in memory of its input.

Torch's own second derivative takes maps whose channels come last apart and puts them together again, at more cost
than the pooling itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Windows:
    """Where maxima are taken from: the pooling's options, the size `(H, W)` and the memory format of the maps."""

    options: tuple[list[int], ...]
    ceil: bool
    size: tuple[int, ...]
    format: torch.memory_format

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, places = torch.ops.aten.max_pool2d_with_indices(x, *self.options, self.ceil)
        return y, places

    def take(self, x: Tensor, places: Tensor) -> Tensor:
        """The values at flat places `(rows, C, h, w)`, along rows of channels where these come last."""
        if self.format is torch.contiguous_format:
            return x.flatten(2).gather(2, places.flatten(2)).view(places.shape)
        flat = x.permute(0, 2, 3, 1).flatten(1, 2).gather(1, places.permute(0, 2, 3, 1).flatten(1, 2))
        return flat.view(places.shape[0], *places.shape[2:], places.shape[1]).permute(0, 3, 1, 2)

    def put_back(self, g: Tensor, places: Tensor) -> Tensor:
        """Maps that are `g` at these places, summed where one is named twice, and 0 elsewhere."""
        shape = (*g.shape[:2], *self.size)
        like = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=self.format)
        x: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(g, like, *self.options, self.ceil, places)
        return x


def max_pool(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """`pool(x)` for `x` `(rows, C, H, W)`: with the places k of the maxima fixed, `x -> x[k]`.

    Example:
        >>> max_pool(nn.MaxPool2d(2), torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]))
        tensor([[[[4.]]]])
    """
    values = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    options = tuple([v, v] if isinstance(v, int) else list(v) for v in values)
    last = x.stride(1) == 1 and x.shape[1] > 1
    layout = torch.channels_last if last else torch.contiguous_format
    windows = _Windows(options, pool.ceil_mode, tuple(x.shape[2:]), layout)
    y, _ = _MaxPool.apply(x, windows)  # type: ignore[no-untyped-call]
    pooled: Tensor = y
    return pooled


class _MaxPool(torch.autograd.Function):
    """Maxima and their places."""

    @staticmethod
    def forward(x: Tensor, windows: _Windows) -> tuple[Tensor, Tensor]:
        return windows.pool(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Windows], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # none of zeros for the places
        _keep(ctx, output[1], inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor, None]:
        return _PutBack.apply(g, *ctx.saved_tensors, ctx.windows), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> tuple[Tensor, None]:
        return _Take.apply(tangent, *ctx.saved_tensors, ctx.windows), None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, windows: _Windows) -> tuple[Any, tuple[int, int]]:
        y, places = _MaxPool.apply(_rows(x, dims[0]), windows)  # type: ignore[no-untyped-call]
        return (y.unflatten(0, (info.batch_size, -1)), places.unflatten(0, (info.batch_size, -1))), (0, 0)


class _Take(torch.autograd.Function):
    """`x -> x[k]`."""

    @staticmethod
    def forward(x: Tensor, places: Tensor, windows: _Windows) -> Tensor:
        return windows.take(x, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, _Windows], output: Tensor) -> None:
        _keep(ctx, inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _PutBack.apply(g, *ctx.saved_tensors, ctx.windows), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _Take.apply(tangent, *ctx.saved_tensors, ctx.windows)  # type: ignore[no-untyped-call,no-any-return]

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, places: Tensor, windows: _Windows) -> tuple[Tensor, int]:
        return _linear(_Take, info, dims, x, places, windows), 0


class _PutBack(torch.autograd.Function):
    """The adjoint of `x -> x[k]`."""

    @staticmethod
    def forward(g: Tensor, places: Tensor, windows: _Windows) -> Tensor:
        return windows.put_back(g, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, _Windows], output: Tensor) -> None:
        _keep(ctx, inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return _Take.apply(v, *ctx.saved_tensors, ctx.windows), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _PutBack.apply(tangent, *ctx.saved_tensors, ctx.windows)  # type: ignore[no-untyped-call,no-any-return]

    @staticmethod
    def vmap(info: Any, dims: Any, g: Tensor, places: Tensor, windows: _Windows) -> tuple[Tensor, int]:
        return _linear(_PutBack, info, dims, g, places, windows), 0


def _keep(ctx: Any, places: Tensor, windows: _Windows) -> None:
    ctx.save_for_backward(places)
    ctx.save_for_forward(places)
    ctx.windows = windows


def _rows(value: Tensor, dim: int | None, size: int = 1) -> Tensor:
    """A batch axis as more rows."""
    spread = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return spread.flatten(0, 1)


def _linear(function: Any, info: Any, dims: Any, x: Tensor, places: Tensor, windows: _Windows) -> Tensor:
    size = info.batch_size
    y: Tensor = function.apply(_rows(x, dims[0], size), _rows(places, dims[1], size), windows)
    return y.unflatten(0, (size, -1))

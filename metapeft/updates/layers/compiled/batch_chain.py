"""A convolution, batch norm on statistics of the batch, ReLU and max-pooling as one step; see batch_chain.cpp."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.updates.layers.compiled.calling import Sizes, call, in_rows, piece_sums, pooled_rows, sizes
from metapeft.updates.layers.function import Function, wanted
from metapeft.updates.layers.moments import moments


def batch_chain(
    x: Tensor, weight: Tensor, size: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`relu(size * pool(z - mean) / sqrt(variance + eps) + shift)` with `z = weight * x`, task by task.

    Args:
        x: `(T*B, C, H, W)`, in bfloat16 where products shall be. weight: `(O, C, 3, 3)`. size: `(T, O)`, nowhere
            negative. shift: `(T, O)`. eps: of the norm.

    Returns: `(T*B, O, H // 2, W // 2)` in the type of x, mean and biased variance `(T, O)` of z.
    """
    y, mean, variance, *_ = _BatchChain.apply(in_rows(x), weight, size, shift, eps)
    return y, mean, variance


def plain_batch_chain(
    x: Tensor, weight: Tensor, size: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, for derivatives beyond the first."""
    z = torch.unflatten(F.conv2d(x.to(weight.dtype), weight, padding=1), 0, (size.shape[0], -1))
    mean, variance = moments(z.flatten(3))
    centred = (z - mean[:, None, :, None, None]).flatten(0, 1)
    pooled = torch.unflatten(F.max_pool2d(centred, 2), 0, (size.shape[0], -1))
    scale = (size * torch.rsqrt(variance + eps))[:, None, :, None, None]
    y = torch.relu(pooled * scale + shift[:, None, :, None, None])
    return y.flatten(0, 1).to(x.dtype), mean, variance


def _sizes(x: Tensor, size: Tensor) -> Sizes:
    tasks, outputs = size.shape
    return sizes(x, tasks, outputs, terms=0, kernels=1)


class _BatchChain(Function):
    """y, mean, variance; and outputs of the convolution less their mean, codes as in chain.cpp."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, size: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        sizes = _sizes(x, size)
        outputs, channels = weight.shape[:2]
        rows, _, height, width = x.shape
        count = sizes.images * height * width
        taps = piece_sums(x, sizes, 9, channels)
        call("batch_taps", sizes, x.dtype, x, taps, memory=None)
        used = weight.to(x.dtype).double()
        mean = torch.einsum("tkc,ock->to", taps.sum(1), used.flatten(2)) / count
        centre = mean.to(weight.dtype).contiguous()
        z = x.new_empty(rows, height + 1, width + 1, outputs)
        y, code = pooled_rows(x, outputs), pooled_rows(x, outputs, torch.uint8)
        squares = piece_sums(x, sizes, outputs)
        call(
            "batch_forward", sizes, x.dtype, x, weight.contiguous(), centre, z, y, code, squares, memory="batch_memory",
        )  # fmt: skip
        variance = squares.sum(1) / count
        scale = (size.double() * torch.rsqrt(variance + eps)).to(weight.dtype).contiguous()
        call("batch_activate", sizes, x.dtype, y, scale, shift.contiguous(), y, code, memory=None)
        return y, centre, variance.to(weight.dtype), z, code

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, variance, z, code = output
        ctx.mark_non_differentiable(z, code)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:4], variance, z, code)
        ctx.eps = inputs[4]

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, of_mean: Tensor | None, of_variance: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        x, weight, size, shift, variance, z, code = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = (x, weight, size, shift)
            return (
                *_plain_gradients(given, ctx.eps, (g, of_mean, of_variance), ctx.needs_input_grad[:4]),
                None,
            )
        g = in_rows(torch.zeros_like(code, dtype=x.dtype) if g is None else g)
        sizes = _sizes(x, size)
        sums = piece_sums(x, sizes, 2, weight.shape[0])
        call("batch_on_sums", sizes, x.dtype, g, code, z, sums, memory=None)
        plain, times = sums.sum(1).unbind(1)
        coefficients, to_size = _slopes(plain, times, size, variance, ctx.eps, sizes, (of_mean, of_variance))
        to_x = torch.empty_like(x) if wanted(ctx, 0) else None
        to_weight = (
            torch.empty_like(weight, memory_format=torch.contiguous_format) if wanted(ctx, 1) else None
        )
        call(
            "batch_gradients", sizes, x.dtype, g, code, x, z, weight.contiguous(),
            coefficients.to(weight.dtype).contiguous(), None, to_x, to_weight, memory="batch_memory",
        )  # fmt: skip
        return to_x, to_weight, to_size.to(size.dtype), plain.to(shift.dtype), None


def _plain_gradients(
    given: tuple[Tensor, ...], eps: float, grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients in the arguments from those of y, mean and variance, to be differentiated further: in plain torch."""
    # tensors of their own, so that what one was computed from is not reached through another
    x, weight, size, shift = fresh = [value.view_as(value) for value in given]
    pairs = [(y, g) for y, g in zip(plain_batch_chain(x, weight, size, shift, eps), grads) if g is not None]
    outputs, cotangents = zip(*pairs)
    inputs = [value for value, need in zip(fresh, needed) if need]
    found = iter(torch.autograd.grad(outputs, inputs, cotangents, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def _slopes(
    plain: Tensor,
    times: Tensor,
    size: Tensor,
    variance: Tensor,
    eps: float,
    sizes: Sizes,
    of_statistics: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Coefficients `(T, 2, 3, O)` of the gradient of z - mean, `a g + b (z - mean) + c`, and the gradient of `size`.

    Args:
        plain, times: `(T, O)` sums of g and of `g (z - mean)` over the values that are on.
    """
    count = sizes.images * sizes.height * sizes.width
    inverse = torch.rsqrt(variance.double() + eps)
    routed = size.double() * inverse
    slope = -routed * inverse**2 * times / count
    level = -routed * plain / count
    of_mean, of_variance = of_statistics
    if of_mean is not None:
        level = level + of_mean / count
    if of_variance is not None:
        slope = slope + 2 * of_variance / count
    own = torch.stack([routed, slope, level], 1)
    return torch.stack([own, own], 1), times * inverse

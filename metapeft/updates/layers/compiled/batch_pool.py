"""A convolution of each task's own weights, less its batch mean, and max-pooling as one step, with two derivatives.

With the choice of maxima fixed it is linear in x and in W, but for the variance, which is quadratic (batch_chain.cpp,
batch_change.cpp). What comes after it, a scale, a shift and ReLU on pooled values, is plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.updates.layers.compiled.calling import Sizes, call, in_rows, piece_sums, pooled_rows, sizes
from metapeft.updates.layers.compiled.chain import OPTIONS
from metapeft.updates.layers.convolution import by_task
from metapeft.updates.layers.function import Function, wanted
from metapeft.updates.layers.moments import moments


def batch_pool_chain(
    x: Tensor, weight: Tensor, size: Tensor, shift: Tensor, eps: float, reference: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`relu(size * pool(z - mean) / sqrt(variance + eps) + shift)` of `batch_pool`, mean and variance.

    Args:
        size, shift: `(T, O)`, sizes nowhere negative.
    """
    pooled, mean, variance = batch_pool(x, weight, reference)
    scale, shift = (value[:, None, :, None, None] for value in (size * torch.rsqrt(variance + eps), shift))
    y = torch.relu_(torch.addcmul(shift, torch.unflatten(pooled, 0, (len(size), -1)), scale))
    return y.flatten(0, 1), mean, variance


def batch_pool(x: Tensor, weight: Tensor, reference: int) -> tuple[Tensor, Tensor, Tensor]:
    """`pool(z - mean)` with `z = weight * x`, task by task, mean and biased variance of z.

    Args:
        x: `(T*B, C, H, W)`. weight: `(T, O, C, 3, 3)`. reference: images of a task, the first ones, that the statistics
            are taken from.

    Returns: `(T*B, O, H // 2, W // 2)`, `(T, O)` and `(T, O)`.
    """
    pooled, mean, variance, *_ = _BatchPool.apply(in_rows(x), weight.contiguous(), reference)
    return pooled, mean, variance


def plain_batch_pool(x: Tensor, weight: Tensor, reference: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, for derivatives beyond the second."""
    z = torch.unflatten(by_task(OPTIONS, x, weight), 0, (weight.shape[0], -1))
    mean, variance = moments(z[:, :reference].flatten(3))
    centred = z - mean[:, None, :, None, None]
    return F.max_pool2d(centred.flatten(0, 1), 2), mean, variance


def _sizes(x: Tensor, weight: Tensor, reference: int) -> Sizes:
    tasks, outputs = weight.shape[:2]
    return sizes(x, tasks, outputs, 0, tasks, reference)


def _count(size: Sizes) -> int:
    return int(size.reference * size.height * size.width)


class _BatchPool(Function):
    """Pooled values, mean, variance; the outputs less their mean, and which of a window was the largest.

    The outputs have gradients from second derivatives, which so go back through the convolution together with those of
    the values.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, reference: int) -> tuple[Tensor, ...]:
        size = _sizes(x, weight, reference)
        outputs, channels = weight.shape[1:3]
        taps = piece_sums(x, size, 9, channels)
        call("batch_taps", size, x.dtype, x, taps, memory=None)
        mean = torch.einsum("tkc,tock->to", taps.sum(1), weight.double().flatten(3)) / _count(size)
        mean = mean.to(x.dtype).contiguous()
        z = x.new_empty(x.shape[0], x.shape[2] + 1, x.shape[3] + 1, outputs)
        pooled, code = pooled_rows(x, outputs), pooled_rows(x, outputs, torch.uint8)
        squares = piece_sums(x, size, outputs)
        call("batch_forward", size, x.dtype, x, weight, mean, z, pooled, code, squares, memory="batch_memory")
        return pooled, mean, (squares.sum(1) / _count(size)).to(x.dtype), z, code

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[4])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2], *output[3:])
        ctx.reference = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, z, code = ctx.saved_tensors
        g, of_mean, of_variance, of_z, _ = grads
        if all(value is None for value in grads):
            return None, None, None
        g = in_rows(torch.zeros_like(code, dtype=x.dtype) if g is None else g)
        of_mean, of_variance = (
            x.new_zeros(weight.shape[:2]) if value is None else value for value in (of_mean, of_variance)
        )
        wants = wanted(ctx, 0), wanted(ctx, 1)
        given = (g, of_mean, of_variance, x, weight, z, code, of_z, ctx.reference, wants)
        return (*_Gradients.apply(*given), None)


class _Gradients(Function):
    """Gradients of x and W from those of what `_BatchPool` gives (of_z: None for none); None where not wanted."""

    @staticmethod
    def forward(
        g: Tensor, of_mean: Tensor, of_variance: Tensor, x: Tensor, weight: Tensor, z: Tensor, code: Tensor,
        of_z: Tensor | None, reference: int, wants: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        size = _sizes(x, weight, reference)
        to_x = torch.empty_like(x) if wants[0] else None
        to_weight = torch.empty_like(weight) if wants[1] else None
        coefficients = _coefficients(g, of_mean, of_variance, size)
        call(
            "batch_gradients", size, x.dtype, g, code, x, z, weight, coefficients, of_z, to_x, to_weight,
            memory="batch_memory",
        )  # fmt: skip
        return to_x, to_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.set_materialize_grads(False)
        ctx.reference = inputs[8]

    @staticmethod
    def backward(ctx: Any, *changes: Tensor | None) -> tuple[Tensor | None, ...]:
        g, of_mean, of_variance, x, weight, z, code = ctx.saved_tensors
        if all(change is None for change in changes):
            return (None,) * 10
        if torch.is_grad_enabled():
            given, needed = (g, of_mean, of_variance, x, weight), ctx.needs_input_grad[:5]
            return (*_plain_gradients(given, ctx.reference, changes, needed), *(None,) * 5)
        size = _sizes(x, weight, ctx.reference)
        x_, weight_ = changes
        x_ = None if x_ is None else in_rows(x_)
        weight_ = None if weight_ is None else weight_.contiguous()
        z_, picked = torch.empty_like(z), torch.empty_like(g)
        sums = piece_sums(x, size, 2, weight.shape[1])
        call(
            "batch_change", size, x.dtype, x_, weight_, x, weight, z, code, z_, picked, sums, memory="batch_memory",
        )  # fmt: skip
        mean_, times = (sums.sum(1) / _count(size)).to(g.dtype).unbind(1)
        to_g = torch.unflatten(picked, 0, (len(mean_), -1)).sub_(mean_[:, None, :, None, None]).flatten(0, 1)
        to_x = torch.empty_like(x) if weight_ is not None and wanted(ctx, 3) else None
        to_weight = torch.empty_like(weight) if x_ is not None and wanted(ctx, 4) else None
        if to_x is not None or to_weight is not None:
            coefficients = _coefficients(g, of_mean, of_variance, size)
            call(
                "batch_gradients", size, x.dtype, g, code, x_, z, weight_, coefficients, None, to_x, to_weight,
                memory="batch_memory",
            )  # fmt: skip
        to_z = _of_outputs(z_, mean_, (2 / _count(size)) * of_variance, ctx.reference)
        return to_g, mean_, 2 * times, to_x, to_weight, to_z, None, None, None, None


def _of_outputs(z: Tensor, mean: Tensor, slope: Tensor, reference: int) -> Tensor:
    """`slope (z - mean)` of the images that count in the statistics, 0 of others, in place of z `(T*B, H, W, O)`."""
    split, (slope, mean) = (
        torch.unflatten(z, 0, (len(mean), -1)),
        (v[:, None, None, None] for v in (slope, mean)),
    )
    counted = split[:, :reference]
    torch.addcmul(-slope * mean, counted, slope, out=counted)
    split[:, reference:].zero_()
    return z


def _coefficients(g: Tensor, of_mean: Tensor, of_variance: Tensor, size: Sizes) -> Tensor:
    """`(T, 2, 3, O)`, as batch_grid.hpp has them: for images that count in the statistics, and for others."""
    count = _count(size)
    sums = torch.unflatten(g, 0, (size.tasks, -1)).sum((1, 3, 4))
    one, none = torch.ones_like(sums), torch.zeros_like(sums)
    own = torch.stack([one, (2 / count) * of_variance, (of_mean - sums) / count], 1)
    return torch.stack([own, torch.stack([one, none, none], 1)], 1)


def _plain_gradients(
    given: tuple[Tensor, ...], reference: int, changes: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of `<x', to_x> + <W', to_weight>` in what those are made from, to be differentiated further."""
    # tensors of their own, so that what one was computed from is not reached through another
    fresh = [
        value.view_as(value) if need else value.detach().requires_grad_()
        for value, need in zip(given, needed)
    ]
    g, of_mean, of_variance, x, weight = fresh
    asked = [i for i, change in enumerate(changes) if change is not None]
    outputs = plain_batch_pool(x, weight, reference)
    found = torch.autograd.grad(
        outputs, [(x, weight)[i] for i in asked], [g, of_mean, of_variance], create_graph=True
    )
    inputs = [value for value, need in zip(fresh, needed) if need]
    cotangents = [changes[i] for i in asked]
    results = iter(torch.autograd.grad(found, inputs, cotangents, create_graph=True, allow_unused=True))
    return [next(results) if need else None for need in needed]

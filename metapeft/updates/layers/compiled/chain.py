"""A convolution with updates, a shift, ReLU and max-pooling as one step with two derivatives; see chain.cpp."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.updates.layers.compiled.calling import TERMS, Sizes, call, in_rows, pooled_rows, sizes
from metapeft.updates.layers.convolution import Spatial, by_task
from metapeft.updates.layers.function import Function, wanted

#: of the convolutions that are compiled
OPTIONS = Spatial(False, (1, 1), (1, 1), (1, 1), 1, (), "constant")


def chain(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, shift: Tensor) -> Tensor:
    """`relu(pool(weight * x + up (down * x)) + shift)`, task by task; `*` is a 3x3 convolution with padding 1.

    Args:
        x: `(T*B, C, H, W)`. weight: `(1, O, C, 3, 3)`, or `(T, O, C, 3, 3)` with rank 0. down: `(T, r, C, 3, 3)`.
        up: `(T, O, r)`. shift: `(T, O)`.

    Returns: `(T*B, O, H // 2, W // 2)`.
    """
    rest = (value.contiguous() for value in (weight, down, up, shift))
    y: Tensor = _Chain.apply(in_rows(x), *rest)[0]
    return y


def plain_chain(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, shift: Tensor) -> Tensor:
    """The same in plain torch, for derivatives beyond the second."""
    z = by_task(OPTIONS, x, weight + torch.einsum("tor,tri...->toi...", up, down))
    pooled = torch.unflatten(F.max_pool2d(z, 2), 0, (shift.shape[0], -1))
    return torch.relu(pooled + shift[:, None, :, None, None]).flatten(0, 1)


def _sizes(x: Tensor, weight: Tensor, down: Tensor) -> Sizes:
    return sizes(x, down.shape[0], weight.shape[1], down.shape[1], weight.shape[0])


class _Chain(Function):
    """y, with what its derivatives need: a byte a value that says where it came from, and `down * x`."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, down: Tensor, up: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = _sizes(x, weight, down)
        y, code = pooled_rows(x, size.outputs), pooled_rows(x, size.outputs, torch.uint8)
        rank = -(-size.terms // TERMS) * TERMS
        low = x.new_empty(x.shape[0], y.shape[2] * y.shape[3], 4, rank)
        call("forward", size, x.dtype, x, weight, down, up, shift, y, code, low)
        return y, code, low

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 5
        wants = tuple(wanted(ctx, argument) for argument in range(5))
        found: tuple[Tensor | None, ...] = _Gradients.apply(in_rows(g), *ctx.saved_tensors, wants)
        return found


class _Gradients(Function):
    """Gradients of the five arguments from g, that of y; None where they are not wanted."""

    @staticmethod
    def forward(
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        down: Tensor,
        up: Tensor,
        shift: Tensor,
        code: Tensor,
        low: Tensor,
        wants: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        to_x, to_weight, to_down, to_up, to_shift = _empty((x, weight, down, up, shift), wants)
        size = _sizes(x, weight, down)
        call(
            "backward", size, x.dtype, g, code, x, weight, down, up, low, to_x, to_weight, to_down, to_up, to_shift,
        )  # fmt: skip
        return to_x, to_weight, to_down, to_up, to_shift

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.save_for_backward(*inputs[:8])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *changes: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight, down, up, shift, code, low = ctx.saved_tensors
        shared = weight.shape[0] == 1 and (down.shape[0] > 1 or down.shape[1] > 0)
        shared_weight_changes = changes[1] is not None and shared
        if torch.is_grad_enabled() or shared_weight_changes:
            needed = ctx.needs_input_grad[:6]
            return (*_plain_gradients((g, x, weight, down, up, shift), changes, needed), None, None, None)
        wants = tuple(wanted(ctx, argument) for argument in range(1, 6))
        to_x, to_weight, to_down, to_up, _ = _empty((x, weight, down, up, shift), wants)
        to_g = torch.empty_like(g)
        of_x, of_weight, of_down, of_up, of_shift = changes
        of_x = None if of_x is None else in_rows(of_x)
        of_down, of_up = (
            torch.zeros_like(like) if value is None else value.contiguous()
            for value, like in ((of_down, down), (of_up, up))
        )
        of_weight, of_shift = (
            None if value is None else value.contiguous() for value in (of_weight, of_shift)
        )
        call(
            "second", _sizes(x, weight, down), x.dtype, of_x, of_weight, of_down, of_up, of_shift, g, code, x, weight,
            down, up, low, to_g, to_x, to_weight, to_down, to_up,
        )  # fmt: skip
        return to_g, to_x, to_weight, to_down, to_up, None, None, None, None


def _empty(likes: tuple[Tensor, ...], wants: tuple[bool, ...]) -> list[Tensor | None]:
    """Tensors for what is wanted; down and up, the third and fourth, come together."""
    together = wants[2] or wants[3]
    asked = (*wants[:2], together, together, wants[4])
    return [torch.empty_like(like) if want else None for like, want in zip(likes, asked)]


def _plain_gradients(
    saved: tuple[Tensor, ...], changes: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of `sum_i <changes_i, i-th gradient of the chain>` in g and the arguments, through plain torch."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # partial ones: tensors of their own, so that what one was computed from is not reached through another
        fresh = [
            value.view_as(value) if further and need else value.detach().requires_grad_(need)
            for value, need in zip(saved, needed)
        ]
        asked = [i for i, change in enumerate(changes) if change is not None]
        found = torch.autograd.grad(
            plain_chain(*fresh[1:]), [fresh[1 + i] for i in asked], fresh[0], create_graph=True
        )
        inputs = [value for value, need in zip(fresh, needed) if need]
        cotangents = [changes[i] for i in asked]
        results = iter(
            torch.autograd.grad(found, inputs, cotangents, create_graph=further, allow_unused=True)
        )
    return [next(results) if need else None for need in needed]

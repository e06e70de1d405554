"""The same step on an input of few channels, such as images, that takes no gradient; see few_channels.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metapeft.updates.layers.compiled.calling import Sizes, call, in_rows, pooled_rows, sizes
from metapeft.updates.layers.function import Function, wanted


def few_channel_chain(x: Tensor, weight: Tensor, shift: Tensor, stored: torch.dtype | None = None) -> Tensor:
    """`relu(pool(weight * x) + shift)`, task by task; `*` is a 3x3 convolution with padding 1.

    Args:
        x: `(T*B, C, H, W)`, which takes no gradient. weight: `(T, O, C, 3, 3)`. shift: `(T, O)`.
        stored: bfloat16 to round what comes out to it (then it is differentiable once); None for the type of x.

    Returns: `(T*B, O, H // 2, W // 2)`, differentiable in weight and shift as often as one likes.
    """
    y: Tensor = _Chain.apply(in_rows(x), weight.contiguous(), shift.contiguous(), stored or x.dtype)[0]
    return y


def _sizes(x: Tensor, tasks: int, outputs: int) -> Sizes:
    return sizes(x, tasks, outputs, terms=0, kernels=tasks)


class _Chain(Function):
    """y, and a byte a value that says where it came from."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, shift: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
        tasks, outputs = shift.shape
        y, code = pooled_rows(x, outputs, stored), pooled_rows(x, outputs, torch.uint8)
        call("few_forward", _sizes(x, tasks, outputs), stored, x, weight, shift, y, code, memory="few_memory")
        return y, code

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], output[1])
        ctx.tasks = inputs[2].shape[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None, None
        return (None, *_Gradients.apply(in_rows(g), *ctx.saved_tensors, ctx.tasks, wanted(ctx, 2)), None)


class _Gradients(Function):
    """Gradients of weight and shift (None where it is not wanted) from g, that of y: linear, adjoint to `_Change`."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, code: Tensor, tasks: int, with_shift: bool
    ) -> tuple[Tensor, Tensor | None]:
        outputs = g.shape[1]
        weight = x.new_empty(tasks, outputs, x.shape[1], 3, 3)
        shift = x.new_empty(tasks, outputs) if with_shift else None
        call(
            "few_gradients",
            _sizes(x, tasks, outputs),
            g.dtype,
            g,
            code,
            x,
            weight,
            shift,
            memory="few_memory",
        )
        return weight, shift

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.save_for_backward(*inputs[1:3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, weight: Tensor | None, shift: Tensor | None) -> tuple[Tensor | None, ...]:
        x, code = ctx.saved_tensors
        if weight is None:
            if shift is None:
                return (None,) * 5
            weight = shift.new_zeros(*shift.shape, x.shape[1], 3, 3)
        shift = None if shift is None else shift.contiguous()
        return _Change.apply(weight.contiguous(), shift, x, code), None, None, None, None


class _Change(Function):
    """What a change of weight and shift (None: 0) does to y where it is on: linear, adjoint to `_Gradients`."""

    @staticmethod
    def forward(weight: Tensor, shift: Tensor | None, x: Tensor, code: Tensor) -> Tensor:
        tasks, outputs = weight.shape[:2]
        y = pooled_rows(x, outputs)
        call("few_change", _sizes(x, tasks, outputs), x.dtype, weight, shift, code, x, y, memory="few_memory")
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[2:])
        ctx.tasks = inputs[0].shape[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Gradients.apply(in_rows(g), *ctx.saved_tensors, ctx.tasks, wanted(ctx, 1)), None, None)

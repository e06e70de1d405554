"""Convolution as a bilinear map, whose derivatives of every order are convolutions of the same three kinds.

By `<y, conv(x, W)> = <x, to_input(y, W)> = <W, to_weight(x, y)>` the adjoints of each of the three maps are the other
two. (Torch's own second derivative takes `to_weight` for a convolution with a kernel as large as an image, and goes
through groups one by one.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class _Map:
    """One of the maps `(a, b) -> c`, with the options of the convolution and the shapes of its input and weight.

    conv takes `(x, W)` to y, to_input `(y, W)` to x, to_weight `(x, y)` to W.
    """

    kind: Literal["conv", "to_input", "to_weight"]
    options: tuple[Any, ...]
    x: tuple[int, ...]
    weight: tuple[int, ...]
    format: torch.memory_format

    def value(self, a: Tensor, b: Tensor) -> Tensor:
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

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        result: Tensor = _Bilinear.apply(a, b, self)  # type: ignore[no-untyped-call]
        return result

    def adjoint_first(self, b: Tensor, g: Tensor) -> Tensor:
        """Of `a -> (a, b)`, at g."""
        if self.kind == "to_weight":
            return replace(self, kind="to_input")(b, g)
        return replace(self, kind="to_input" if self.kind == "conv" else "conv")(g, b)

    def adjoint_second(self, a: Tensor, g: Tensor) -> Tensor:
        """Of `b -> (a, b)`, at g."""
        if self.kind == "to_weight":
            return replace(self, kind="conv")(a, g)
        return replace(self, kind="to_weight")(*((a, g) if self.kind == "conv" else (g, a)))


def convolve2d(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """`F.conv2d(x, weight, None, ...)` of `x` `(rows, C, H, W)`.

    Example:
        >>> convolve2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), (1, 1), (0, 0), (1, 1), 1)
        tensor([[[[4.]]]])
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, weight.dtype):
        x, weight = (value.to(torch.get_autocast_dtype(device)) for value in (x, weight))
    last = x.stride(1) == 1 and x.shape[1] > 1
    layout = torch.channels_last if last else torch.contiguous_format
    options = (stride, padding, dilation, groups)
    return _Map("conv", options, tuple(x.shape), tuple(weight.shape), layout)(x, weight)


class _Bilinear(torch.autograd.Function):
    """A map with its derivatives in a and in b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, map: _Map) -> Tensor:
        return map.value(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, _Map], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.map = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        first = ctx.map.adjoint_first(b, g) if _wanted(ctx, 0) else None
        second = ctx.map.adjoint_second(a, g) if _wanted(ctx, 1) else None
        return first, second, None

    @staticmethod
    def jvp(ctx: Any, of_a: Tensor | None, of_b: Tensor | None, _: Any) -> Tensor | None:
        a, b = ctx.saved_tensors
        first = None if of_a is None else ctx.map(of_a, b)
        second = None if of_b is None else ctx.map(a, of_b)
        return first if second is None else second if first is None else first + second


def _wanted(ctx: Any, argument: int) -> bool:
    """Whether this backward pass goes on to an argument: of the frozen kernel in an inner gradient it does not.

    Torch tells its own functions; where it cannot tell (a leaf), the answer is what `needs_input_grad` says.
    """
    if not ctx.needs_input_grad[argument]:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[argument][0]))
    except (AttributeError, RuntimeError):
        return True

"""Bilinear maps that know their adjoints: derivatives of every order are maps of the same family again."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from metapeft.updates.layers.function import Function, wanted


class BilinearMap(Protocol):
    """`(a, b) -> c`."""

    def value(self, a: Tensor, b: Tensor) -> Tensor:
        """The map."""

    def adjoint_first(self, b: Tensor, c: Tensor) -> Tensor:
        """`x` with `<c, map(a, b)> = <x, a>` for all a, by maps of the family."""

    def adjoint_second(self, a: Tensor, c: Tensor) -> Tensor:
        """`x` with `<c, map(a, b)> = <x, b>` for all b."""


def bilinear(map: BilinearMap, a: Tensor, b: Tensor) -> Tensor:
    """`map.value(a, b)`, differentiable in both as often as one likes; under autocast in its type."""
    device = a.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (a.dtype, b.dtype):
        a, b = (value.to(torch.get_autocast_dtype(device)) for value in (a, b))
    c: Tensor = _Bilinear.apply(a, b, map)
    return c


class _Bilinear(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, map: BilinearMap) -> Tensor:
        return map.value(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, BilinearMap], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.map = inputs[2]

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        first = ctx.map.adjoint_first(b, c) if wanted(ctx, 0) else None
        second = ctx.map.adjoint_second(a, c) if wanted(ctx, 1) else None
        return first, second, None

    @staticmethod
    def jvp(ctx: Any, of_a: Tensor | None, of_b: Tensor | None, _: Any) -> Tensor | None:
        a, b = ctx.saved_tensors
        first = None if of_a is None else bilinear(ctx.map, of_a, b)
        second = None if of_b is None else bilinear(ctx.map, a, of_b)
        return first if second is None else second if first is None else first + second

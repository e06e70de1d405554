"""Linear maps that know their adjoint: the derivatives of both, of every order, are the two of them again."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from metapeft.updates.layers.function import Function


class LinearMap(Protocol):
    """`x -> y`, for each row (entry of the first axis) on its own.

    `index`, where there is one, has a first axis of the same length.
    """

    def value(self, x: Tensor, index: Tensor | None) -> Tensor:
        """The map."""

    def adjoint(self) -> LinearMap:
        """The map `A^T` with `<y, A x> = <A^T y, x>`, for the same index."""


def linear(map: LinearMap, x: Tensor, index: Tensor | None = None) -> Tensor:
    """`map.value(x, index)`, differentiable in x as often as one likes."""
    y: Tensor = _Linear.apply(x, index, map)
    return y


class _Linear(Function):
    @staticmethod
    def forward(x: Tensor, index: Tensor | None, map: LinearMap) -> Tensor:
        return map.value(x, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, LinearMap], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.map = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return linear(ctx.map.adjoint(), g, *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return linear(ctx.map, tangent, *ctx.saved_tensors)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], x: Tensor, index: Tensor | None, map: LinearMap
    ) -> tuple[Tensor, int]:
        rows = None if index is None else more_rows(index, dims[1], info.batch_size)
        y = linear(map, more_rows(x, dims[0], info.batch_size), rows)
        return torch.unflatten(y, 0, (info.batch_size, -1)), 0


def more_rows(x: Tensor, dim: int | None, size: int) -> Tensor:
    """A batch axis (`dim`; None where x is the same for the whole batch) as more rows."""
    return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

"""A convolution from many channels to a few: products at every position first, then sums of shifted planes.

Between the two lie `channels * prod(kernel)` planes of the map; as many a task as its few outputs have taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metapeft.updates.layers.bilinear_map import bilinear
from metapeft.updates.layers.linear_map import linear

Pair = tuple[int, int]


def convolve_thin(x: Tensor, weights: Tensor, padding: Pair, dilation: Pair) -> Tensor:
    """Each task's rows with its own weights, stride 1.

    Args:
        x: `(T*B, C, H, W)`. weights: `(T, channels, C, kh, kw)`.

    Returns: `(T, B*H'*W', channels)`.

    Example:
        >>> convolve_thin(torch.ones(1, 2, 1, 3), torch.ones(1, 1, 2, 1, 2), (0, 0), (1, 1)).flatten()
        tensor([4., 4.])
    """
    tasks, channels, _, *kernel = weights.shape
    size = (x.shape[2], x.shape[3])
    matrix = weights.flatten(3).transpose(2, 3).flatten(1, 2)  # (T, channels * taps, C)
    by_position = x.movedim(1, -1).reshape(tasks, -1, x.shape[1])
    planes = bilinear(Products("planes"), by_position, matrix)
    planes = planes.view(tasks, channels, kernel[0] * kernel[1], -1, *size)
    sums = linear(ShiftedSum((kernel[0], kernel[1]), padding, dilation, size), planes)
    return sums.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Products:
    """Products of a task, each in the order of memory that the next step wants.

    planes takes `x (T, N, C)`, `M (T, P, C)` to `M x^T` `(T, P, N)`, rows `p (T, P, N)` and M to `p^T M` `(T, N, C)`,
    matrix p and x to `p x` `(T, P, C)`.
    """

    kind: Literal["planes", "rows", "matrix"]

    def value(self, a: Tensor, b: Tensor) -> Tensor:
        if self.kind == "planes":
            return torch.matmul(b, a.mT)
        return torch.matmul(a.mT if self.kind == "rows" else a, b)

    def adjoint_first(self, b: Tensor, c: Tensor) -> Tensor:
        if self.kind == "planes":
            return bilinear(Products("rows"), c, b)
        return bilinear(Products("planes"), *((c, b) if self.kind == "rows" else (b, c)))

    def adjoint_second(self, a: Tensor, c: Tensor) -> Tensor:
        if self.kind == "matrix":
            return bilinear(Products("rows"), a, c)
        return bilinear(Products("matrix"), *((c, a) if self.kind == "planes" else (a, c)))


@dataclass(frozen=True)
class ShiftedSum:
    """`y[i, j] = sum_(u, v) planes[(u, v), i + u d - p, j + v d - p]`, or its adjoint; outside of planes is 0.

    Args:
        kernel, padding, dilation: of the convolution. size: `(H, W)` of the planes.

    `planes` are `(T, channels, taps, B, H, W)`, the sums `(T, channels, B, H', W')`.

    Example:
        >>> planes = torch.arange(6.0).view(1, 1, 2, 1, 1, 3)
        >>> ShiftedSum((1, 2), (0, 0), (1, 1), (1, 3)).value(planes, None).flatten()
        tensor([4., 6.])
    """

    kernel: Pair
    padding: Pair
    dilation: Pair
    size: Pair
    back: bool = False

    def adjoint(self) -> ShiftedSum:
        return replace(self, back=not self.back)

    @property
    def sums(self) -> Pair:
        """`(H', W')`."""
        height, width = (
            s + 2 * p - d * (k - 1) for s, p, d, k in zip(self.size, self.padding, self.dilation, self.kernel)
        )
        return height, width

    def value(self, x: Tensor, index: Tensor | None) -> Tensor:
        x = x.contiguous()
        if self.back:
            planes = x.new_zeros((*x.shape[:2], self.kernel[0] * self.kernel[1], x.shape[2], *self.size))
            for tap, to, of in self._overlaps():
                planes[:, :, tap, :, of[0], of[1]] = x[..., to[0], to[1]]
            return planes
        total = x.new_zeros((*x.shape[:2], x.shape[3], *self.sums))
        for tap, to, of in self._overlaps():
            total[..., to[0], to[1]] += x[:, :, tap, :, of[0], of[1]]
        return total

    def _overlaps(self) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """Each tap, the part of the sums that its plane falls onto, and which part of the plane that is."""
        for tap in range(self.kernel[0] * self.kernel[1]):
            to, of = [], []
            for axis, place in enumerate(divmod(tap, self.kernel[1])):
                shift = place * self.dilation[axis] - self.padding[axis]
                begin = max(0, -shift)
                end = max(begin, min(self.sums[axis], self.size[axis] - shift))
                to.append(slice(begin, end))
                of.append(slice(begin + shift, end + shift))
            yield tap, (to[0], to[1]), (of[0], of[1])

"""Convolutions of all tasks at once: dense updates as grouped convolutions, low-rank ones as two thin maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.updates.call import Update

# Below this many input channels a grouped convolution is faster than products with shifted sums
# (two cores, 28x28: 42 against 294 ms for one channel; 64 channels at 14x14: 159 against 91 ms).
_FEW_CHANNELS = 16


@dataclass(frozen=True)
class Spatial:
    """A convolution's options as a 2-d one (a 1-d convolution has height 1); inputs are padded by `pad`."""

    one_dimensional: bool
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    explicit: tuple[int, ...]
    mode: str

    def pad(self, x: Tensor) -> Tensor:
        """Bring `x` to four axes and apply what padding the convolution itself cannot."""
        if any(self.explicit):
            x = F.pad(x, self.explicit, mode=self.mode)
        return x.unsqueeze(2) if self.one_dimensional else x

    def kernel(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(-2) if self.one_dimensional else weight

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, times: int = 1) -> Tensor:
        """The plain convolution of an input that `pad` has seen, with `groups * times` groups."""
        kernel = self.kernel(weight)
        y = F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation, self.groups * times)
        return y.squeeze(2) if self.one_dimensional else y


def spatial(module: nn.Conv1d | nn.Conv2d) -> Spatial:
    """Read a layer's options; asymmetric "same" padding and padding modes other than zeros become explicit."""
    one = isinstance(module, nn.Conv1d)
    stride, dilation, kernel = module.stride, module.dilation, module.kernel_size
    if module.padding == "valid":
        sides = [(0, 0)] * len(kernel)
    elif module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    implicit = module.padding_mode == "zeros" and all(low == high for low, high in sides)
    explicit = () if implicit else tuple(side for pair in reversed(sides) for side in pair)
    padding = [low if implicit else 0 for low, _ in sides]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    lead = (lambda value: (1, *value)) if one else tuple
    return Spatial(
        one,
        lead(stride),
        (0, *padding) if one else tuple(padding),
        lead(dilation),
        module.groups,
        explicit,
        mode,  # type: ignore[arg-type]
    )


def grouped(geometry: Spatial, x: Tensor, weights: Tensor, groups: int) -> Tensor:
    """Convolve each task's rows with its own weights by one grouped convolution.

    Args:
        x: `(T*B, C, H, W)`. weights: `(T, channels, C/groups, *kernel)`.

    Returns: `(T*B, channels, H', W')`, or without the height of a 1-d convolution.
    """
    tasks, channels = weights.shape[:2]
    items = x.shape[0] // tasks
    if tasks == 1:
        side_by_side = x
    else:
        side_by_side = x.unflatten(0, (tasks, items)).transpose(0, 1).flatten(1, 2)
    kernel = geometry.kernel(weights.flatten(0, 1))
    y = F.conv2d(
        side_by_side, kernel, None, geometry.stride, geometry.padding, geometry.dilation, tasks * groups
    )
    if tasks > 1:
        y = y.unflatten(1, (tasks, channels)).transpose(0, 1).flatten(0, 1)
    return y.squeeze(2) if geometry.one_dimensional else y


def convolve_dense(geometry: Spatial, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Full updates: `weights` `(T, out, in/groups, *kernel)` are each task's own."""
    y = grouped(geometry, x, weights, geometry.groups)
    return y if bias is None else y + bias.view(-1, *[1] * (y.dim() - 2))


def convolve_low_rank(geometry: Spatial, x: Tensor, base: Tensor, update: Update) -> Tensor:
    """Add `up (down * x)` to `base`: a spatial map to a few channels, then a pointwise one.

    Every group of the layer sees the same `down`; group `g` of the output uses its own rows of `up`.
    """
    tasks, groups = update.tasks, geometry.groups
    rows, positions = x.shape[0], base.shape[2:].numel()
    if groups > 1:  # the groups of an input become rows of their own
        x = x.unflatten(1, (groups, -1)).flatten(0, 1)
    hidden = _down(geometry, x, update.down)  # (T*B*groups, channels, L)
    if update.per_input:
        by_position = hidden.unflatten(0, (tasks, -1)).transpose(2, 3)  # (T, B*groups, L, channels)
        hidden = (
            update.mix(by_position.flatten(1, 2)).unflatten(1, (-1, positions)).flatten(0, 1).transpose(1, 2)
        )
    up = update.up.unflatten(1, (groups, -1)).unsqueeze(1)  # (T, 1, groups, out/groups, channels)
    up = up.expand(tasks, rows // tasks, *up.shape[2:]).reshape(rows * groups, *up.shape[3:])
    flat = base.reshape(rows * groups, -1, positions)
    return torch.baddbmm(flat, up, hidden).view(base.shape)


def _down(geometry: Spatial, x: Tensor, down: Tensor) -> Tensor:
    """The spatial map to `channels`: `(T*B, C, H, W)` and `(T, channels, C, *kernel)` to `(T*B, channels, L)`.

    With stride 1 and many input channels the products come first, at every position, and the shifted sums
    after, on `channels * prod(kernel)` thin planes; otherwise it is one grouped convolution.
    """
    kernel = (1, down.shape[3]) if geometry.one_dimensional else tuple(down.shape[3:])
    reach = [d * (k - 1) - p for d, k, p in zip(geometry.dilation, kernel, geometry.padding)]
    thin = geometry.stride == (1, 1) and min(reach) >= 0 and x.shape[1] >= _FEW_CHANNELS
    if not thin:
        ungrouped = Spatial(
            geometry.one_dimensional, geometry.stride, geometry.padding, geometry.dilation, 1, (), "constant"
        )
        return grouped(ungrouped, x, down, 1).flatten(2)
    tasks, channels = down.shape[:2]
    size = [s - r + p for s, r, p in zip(x.shape[2:], reach, geometry.padding)]  # of the output
    taps = kernel[0] * kernel[1]
    # fold adds plane (channel, tap) shifted by its tap, which is a convolution with the taps reversed
    matrix = (
        down.reshape(tasks, channels, -1, taps).flip(3).transpose(2, 3).reshape(tasks, 1, channels * taps, -1)
    )
    planes = torch.matmul(matrix, x.unflatten(0, (tasks, -1)).flatten(3)).flatten(0, 1)
    return F.fold(planes, size, kernel, dilation=geometry.dilation, padding=tuple(reach)).flatten(2)

"""Convolutions of all tasks at once: dense updates as each task's own, low-rank ones as thin maps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.updates.layers.bilinear_convolution import convolve2d
from metapeft.updates.layers.call import Update
from metapeft.updates.layers.thin_convolution import convolve_thin

# Below this many input channels a convolution for each task is faster than products with shifted sums
# (two cores, 28x28: 42 against 294 ms for one channel; 64 channels at 14x14: 159 against 91 ms).
_FEW_CHANNELS = 16
# Up to this many numbers under the kernel (one channel and 3x3: 9) a convolution is faster as one matrix product
# (one core, 300 images of 28x28 to 32 channels: 14 against 42 ms), and leaves its channels last, on which the
# pooling that usually follows is 7 times as fast.
FEW_TAPS = 32


@dataclass(frozen=True)
class Spatial:
    """A convolution's options as a 2-d one (1-d has height 1); `pad` does what `padding` cannot."""

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

    def is_small(self, weight: Tensor) -> bool:
        """Whether the numbers under the kernel are so few that `columns` is the faster way."""
        return not self.one_dimensional and self.groups == 1 and weight[0].numel() <= FEW_TAPS

    def columns(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """A convolution as one product a task, `(rows, C, H, W)` and `(T, out, C, k, k)` to channels last."""
        kernel = (weights.shape[3], weights.shape[4])
        taps = F.unfold(x, kernel, self.dilation, self.padding, self.stride)  # (rows, C k k, L)
        tasks = weights.shape[0]
        by_task = taps.transpose(1, 2).reshape(tasks, -1, taps.shape[1])
        matrix = weights.flatten(2).transpose(1, 2)
        if bias is None:
            y = torch.bmm(by_task, matrix)
        else:
            y = torch.baddbmm(bias.expand(tasks, by_task.shape[1], -1), by_task, matrix)
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // step + 1
            for size, p, d, k, step in zip(x.shape[2:], self.padding, self.dilation, kernel, self.stride)
        )
        return y.view(x.shape[0], height, width, -1).permute(0, 3, 1, 2)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of an input that `pad` has seen; a 1-d kernel is given its height."""
        if self.is_small(weight):
            return self.columns(x, weight.unsqueeze(0), bias)
        kernel = weight.unsqueeze(-2) if self.one_dimensional else weight
        y = convolve2d(x, kernel, self.stride, self.padding, self.dilation, self.groups)
        y = y if bias is None else y + bias.view(-1, 1, 1)
        return y.squeeze(2) if self.one_dimensional else y


def _pair(values: tuple[int, ...], missing: int) -> tuple[int, int]:
    return (missing, values[0]) if len(values) == 1 else (values[0], values[1])


def spatial(module: nn.Module) -> Spatial:
    """Read a layer's options; asymmetric "same" padding and modes other than zeros become explicit."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        raise TypeError(f"{type(module).__name__} is no 1-d or 2-d convolution")
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
        sides = [(total // 2, total - total // 2) for total in totals]
    elif module.padding == "valid":
        sides = [(0, 0) for _ in module.kernel_size]
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    implicit = module.padding_mode == "zeros" and all(low == high for low, high in sides)
    return Spatial(
        one_dimensional=isinstance(module, nn.Conv1d),
        stride=_pair(module.stride, 1),
        padding=_pair(tuple(low if implicit else 0 for low, _ in sides), 0),
        dilation=_pair(module.dilation, 1),
        groups=module.groups,
        explicit=() if implicit else tuple(side for pair in reversed(sides) for side in pair),
        mode="constant" if module.padding_mode == "zeros" else module.padding_mode,
    )


def by_task(options: Spatial, x: Tensor, weights: Tensor) -> Tensor:
    """Convolve each task's rows with its own weights; channels last.

    On one thread of the CPU one task after the other (MAML on Conv-4-64: 1.1 times as fast); elsewhere by one
    convolution of `T` times the groups, which several threads share (two threads: 1.3 times as fast).

    Args:
        x: `(rows, C, H, W)`. weights: `(T, channels, C/groups, *kernel)`.

    Returns: `(rows, channels, H', W')`, or without the height of a 1-d convolution.
    """
    if weights.shape[0] == 1:
        return options.convolve(x, weights[0])
    if x.device.type != "cpu" or torch.get_num_threads() > 1:
        return _grouped(options, x, weights)
    kernels = weights.unsqueeze(-2) if options.one_dimensional else weights
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    y = convolve2d(x, kernels, options.stride, options.padding, options.dilation, options.groups)
    return y.squeeze(2) if options.one_dimensional else y


def _grouped(options: Spatial, x: Tensor, weights: Tensor) -> Tensor:
    """Channels stay next to each other in memory on the way there and back, so that copies go in long runs."""
    tasks, channels = weights.shape[:2]
    by_position = torch.unflatten(x.movedim(1, -1), 0, (tasks, -1)).movedim(0, -2)  # (B, ..., T, C)
    several = replace(options, groups=tasks * options.groups)
    y = several.convolve(by_position.flatten(-2).movedim(-1, 1), weights.flatten(0, 1))
    by_position = torch.unflatten(y.movedim(1, -1), -1, (tasks, channels)).movedim(-2, 0)
    return by_position.flatten(0, 1).movedim(-1, 1)


def convolve_dense(options: Spatial, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Full updates: `weights` `(T, out, in/groups, *kernel)` are each task's own."""
    if options.is_small(weights[0]):
        return options.columns(x, weights, bias)
    y = by_task(options, x, weights)
    return y if bias is None else y + bias.view(-1, *[1] * (y.dim() - 2))


def convolve_low_rank(
    options: Spatial, x: Tensor, weight: Tensor, bias: Tensor | None, update: Update, up: Tensor | None = None
) -> Tensor:
    """`W0 * x + up (down * x)`: beside the shared convolution a spatial map to a few channels and a pointwise one.

    Every group of the layer sees the same `down`; group `g` of the output uses its own rows of `up`. Where the
    kernel is small, or there is one task, the update is added to the weights instead: a product as cheap as the
    kernel, and fewer operations. `up`, where it is given, stands for the update's own.
    """
    up = update.up if up is None else up
    if not update.per_input and (update.tasks == 1 or options.is_small(weight)):
        delta = torch.einsum("tor,tri...->toi...", up, update.down)
        return convolve_dense(options, x, weight + delta, bias)
    base = options.convolve(x, weight, bias)
    tasks, groups = update.tasks, options.groups
    rows, positions = x.shape[0], base.shape[2:].numel()
    if groups > 1:  # the groups of an input become rows of their own
        x = torch.unflatten(x, 1, (groups, -1)).flatten(0, 1)
    by_position = update.mix(_down(replace(options, groups=1, explicit=()), x, update.down, positions))
    if groups == 1:  # one product a task, on rows of positions
        flat = base.flatten(2).transpose(1, 2).reshape(tasks, -1, base.shape[1])
        y = torch.baddbmm(flat, by_position, up.transpose(1, 2))
        return torch.unflatten(y.view(rows, positions, y.shape[2]).transpose(1, 2), 2, base.shape[2:])
    hidden = by_position.reshape(rows * groups, positions, -1).transpose(1, 2)
    up = torch.unflatten(up, 1, (groups, -1)).unsqueeze(1)  # (T, 1, groups, out/groups, channels)
    up = up.expand(tasks, rows // tasks, *up.shape[2:]).reshape(rows * groups, *up.shape[3:])
    flat = base.reshape(rows * groups, -1, positions)
    return torch.baddbmm(flat, up, hidden).view(base.shape)


def _down(options: Spatial, x: Tensor, down: Tensor, positions: int) -> Tensor:
    """The spatial map: `(rows, C, H, W)` and `(T, channels, C, *kernel)` to `(T, rows / T * positions, channels)`.

    Few input channels, or strides that leave positions out, are convolutions of each task's own.
    """
    tasks, channels = down.shape[:2]
    if channels == 0:  # rank 0; the empty sum keeps the factor in the graph
        return x.new_zeros(tasks, x.shape[0] // tasks * positions, 0) + down.sum()
    if options.stride != (1, 1) or x.shape[1] < _FEW_CHANNELS:
        return by_task(options, x, down).flatten(2).transpose(1, 2).reshape(tasks, -1, channels)
    if options.one_dimensional:
        down = down.unsqueeze(3)
    return convolve_thin(x, down, options.padding, options.dilation)

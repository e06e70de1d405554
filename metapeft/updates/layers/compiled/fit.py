"""Whether the compiled kernels can stand for a chain, and the chain through them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from metapeft.updates.layers.call import Update
from metapeft.updates.layers.compiled.calling import DTYPES, has_tangent, lanes
from metapeft.updates.layers.compiled.chain import OPTIONS, chain
from metapeft.updates.layers.compiled.few_channels import few_channel_chain
from metapeft.updates.layers.compiled.switch import in_use
from metapeft.updates.layers.convolution import FEW_TAPS, spatial
from metapeft.updates.layers.function import transforms_are_active


def compiled_chain(
    convolution: nn.Conv2d, pool: nn.MaxPool2d, x: Tensor, update: Update | None, scale: Tensor, shift: Tensor
) -> Tensor | None:
    """`relu(pool(scale * (convolution without bias)(x)) + shift)`; None where the kernels are off or do not fit.

    Args:
        x: `(T*B, C, H, W)`. update: of the weight. scale: `(O,)`, or `(T, O)` where the update is dense.
        shift: `(T, O)`.
    """
    weight = convolution.weight
    if not in_use() or not layers_fit(convolution, pool) or not _tensors_fit(x, weight, update, scale, shift):
        return None
    tasks = shift.shape[0]
    spread = scale.view(-1, scale.shape[-1], 1, 1, 1)
    if update is not None and update.format.dense:
        kernels = (weight + update.delta(x.shape[0])) * spread
        down, up = _nothing(kernels, tasks)
    else:
        kernels = weight.unsqueeze(0) * spread
        down, up = (
            _nothing(kernels, tasks) if update is None else (update.down, update.up * scale.unsqueeze(-1))
        )
    if weight.shape[1] % lanes(x.dtype) == 0:
        return chain(x, kernels, down, up, shift)
    if not x.requires_grad and weight[0].numel() <= FEW_TAPS:
        kernels = kernels + torch.einsum("tor,tri...->toi...", up, down)
        return few_channel_chain(x, kernels.expand(tasks, *weight.shape), shift)
    return None


def _nothing(kernels: Tensor, tasks: int) -> tuple[Tensor, Tensor]:
    """Factors of rank 0."""
    _, outputs, channels, *taps = kernels.shape
    return kernels.new_empty(tasks, 0, channels, *taps), kernels.new_empty(tasks, outputs, 0)


def layers_fit(convolution: nn.Conv2d, pool: nn.MaxPool2d) -> bool:
    """3x3 with padding 1, then 2x2 at every second place, nothing else."""
    window = [pool.kernel_size, pool.stride, pool.padding, pool.dilation]
    whole = [value if isinstance(value, int) or len({*value}) > 1 else value[0] for value in window]
    square = convolution.kernel_size == (3, 3) and spatial(convolution) == OPTIONS
    return square and whole == [2, 2, 0, 1] and not pool.ceil_mode


def _tensors_fit(x: Tensor, weight: Tensor, update: Update | None, *more: Tensor) -> bool:
    """On a CPU, in a type that is compiled, in whole registers, and to be differentiated in reverse mode only."""
    if x.dtype not in DTYPES or torch.is_autocast_enabled("cpu") or (update is not None and update.per_input):
        return False
    tensors = (x, weight, *more, *(() if update is None else update.factors.values()))
    return (
        shapes_fit(x, weight) and reverse_mode(tensors) and all(value.dtype == x.dtype for value in tensors)
    )


def shapes_fit(x: Tensor, weight: Tensor) -> bool:
    """Outputs in whole registers, images that are at least a window of the pooling."""
    outputs, channels = weight.shape[-4:-2]
    whole = outputs % lanes(weight.dtype) == 0 and channels == x.shape[1]
    return whole and min(x.shape[2:]) >= 2 and x.shape[0] > 0


def reverse_mode(tensors: Iterable[Tensor]) -> bool:
    """Whether all are on a CPU and are differentiated in reverse mode only."""
    if transforms_are_active():
        return False
    return all(value.device.type == "cpu" and not has_tangent(value) for value in tensors)

"""The step on statistics of the batch where the input has few channels and takes no gradient.

Mean and variance of the convolution's outputs follow from the moments of what stands under its kernel
(few_moments.cpp), so they are known before it runs, and scale and shift go into the weights; gradients through the
statistics come with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metapeft.updates.layers.compiled.calling import call, in_rows, piece_sums, sizes
from metapeft.updates.layers.compiled.few_channels import few_channel_chain


def few_batch_chain(
    x: Tensor,
    weight: Tensor,
    size: Tensor,
    shift: Tensor,
    eps: float,
    stored: torch.dtype | None = None,
    reference: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `batch_chain`, on x `(T*B, C, H, W)` that takes no gradient.

    Args:
        weight: `(O, C, 3, 3)`, or `(T, O, C, 3, 3)`. size, shift: `(T, O)`. stored: bfloat16 to round the values to it.
        reference: images of a task, the first ones, that the statistics are taken from; None for all.
    """
    x = in_rows(x)
    mean_patch, covariance = patch_moments(x, size.shape[0], reference)
    taps = weight.double().movedim(-3, -1).flatten(-3)  # as the patches are: channels last
    taps = taps.expand(size.shape[0], *taps.shape[-2:])
    mean = (taps @ mean_patch.unsqueeze(-1)).squeeze(-1)
    variance = ((taps @ covariance) * taps).sum(-1).clamp_min(0.0)
    scale = size * torch.rsqrt(variance + eps)
    kernels = weight * scale.to(weight.dtype)[..., None, None, None]
    y = few_channel_chain(x, kernels, (shift - mean * scale).to(shift.dtype), stored)
    return y, mean.to(weight.dtype), variance.to(weight.dtype)


def patch_moments(x: Tensor, tasks: int, reference: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean `(T, 9 C)` and covariance `(T, 9 C, 9 C)` of what stands under a 3x3 kernel at the places of `x`."""
    size = sizes(x, tasks, 0, 0, tasks, reference)
    own = 9 * x.shape[1]
    sums = piece_sums(x, size, own + 1, own + 1)
    call("few_moments", size, x.dtype, x, sums, memory="few_moments_memory")
    means = sums.sum(1) / (size.reference * size.height * size.width)
    first, second = means[:, own, :own], means[:, :own, :own]
    return first, second - first.unsqueeze(2) * first.unsqueeze(1)

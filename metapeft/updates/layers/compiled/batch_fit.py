"""Whether the compiled kernels can stand for a chain on statistics of the batch, and the chain through them."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor, nn

from metapeft.updates.layers.compiled.batch_chain import batch_chain
from metapeft.updates.layers.compiled.batch_pool import batch_pool_chain
from metapeft.updates.layers.compiled.calling import DTYPES, lanes
from metapeft.updates.layers.compiled.few_batch import few_batch_chain
from metapeft.updates.layers.compiled.fit import layers_fit, reverse_mode, shapes_fit
from metapeft.updates.layers.compiled.switch import in_use, loaded
from metapeft.updates.layers.convolution import FEW_TAPS

log = logging.getLogger("metapeft")


def compiled_batch_chain(
    convolution: nn.Conv2d,
    pool: nn.MaxPool2d,
    x: Tensor,
    weight: Tensor,
    size: Tensor,
    shift: Tensor,
    eps: float,
    reference: int,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`batch_chain` of the convolution without its bias; None where the kernels are off or do not fit.

    Under autocast to bfloat16 values are stored so, and products are of such numbers with sums in float32; that is for
    a weight that all tasks share.

    Args:
        convolution: whose options are those of the step. weight: `(O, C, 3, 3)`, or `(T, O, C, 3, 3)`.
        size, shift: `(T, O)`. reference: images of a task, the first ones, that the statistics are taken from.
    """
    if not in_use() or not layers_fit(convolution, pool) or not reverse_mode((x, weight, size, shift)):
        return None
    stored, (channels, *_) = _stored(x, weight), weight.shape[-3:]
    if stored is None or not shapes_fit(x, weight) or not size.dtype == shift.dtype == weight.dtype:
        return None
    if channels % lanes(weight.dtype) == 0:
        if weight.dim() == 4 and reference * len(size) == x.shape[0]:
            return batch_chain(x.to(stored), weight, size, shift, eps)
        if stored == weight.dtype:
            return batch_pool_chain(
                x, weight.expand(len(size), *weight.shape[-4:]), size, shift, eps, reference
            )
        return None
    if not x.requires_grad and channels * 9 <= FEW_TAPS:
        return few_batch_chain(x.to(weight.dtype), weight, size, shift, eps, stored, reference)
    return None


def _stored(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The type that values are stored in; None where no kernel has it."""
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype if x.dtype in DTYPES and x.dtype == weight.dtype else None
    wanted = torch.get_autocast_dtype("cpu")
    fits = wanted == torch.bfloat16 and weight.dtype == torch.float32 and x.dtype in (torch.float32, wanted)
    return wanted if fits and _has_bfloat16() else None


@cache
def _has_bfloat16() -> bool:
    found = hasattr(loaded(), "batch_forward_bfloat16")
    if not found:
        log.info(
            "this processor has no products of bfloat16 (AVX512_BF16): there autocast stays in plain torch"
        )
    return found

"""One task's update written into a plain copy of the backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metapeft.updates import factors as _factors
from metapeft.updates.batched import BatchedBackbone
from metapeft.updates.layers.call import Statistics
from metapeft.updates.layers.normalization import is_batch_norm
from metapeft.updates.module_copies import own_copy


@torch.no_grad()
def with_updates(
    model: BatchedBackbone,
    factors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None,
    statistics: Statistics,
) -> nn.Module:
    """A copy of the backbone with one task's update inside, and that task's statistics as buffers.

    Args:
        factors: one task's, `(1, ...)`.
        weights: parameters and buffers in place of the backbone's own.
        statistics: of batch norms, `(1, C)`; empty to keep the buffers.
    """
    plain = own_copy(model.module).eval()
    model.forget(plain)
    state = {
        **dict(plain.named_buffers(remove_duplicate=False)),
        **dict(plain.named_parameters(remove_duplicate=False)),
    }
    for name, value in model.slots.filled(weights or {}).items():
        state[name].copy_(value)
    for name, update in _factors.updates_of(model.sites, factors, state, 1, 1).items():
        state[name].add_(update.delta(1)[0])
    for name, module in plain.named_modules():
        if name in statistics and is_batch_norm(module):
            mean, variance, _ = statistics[name]
            _bake(module, mean[0], variance[0])
    return plain


def _bake(module: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Make a batch norm use the given statistics `(C,)` in eval mode."""
    module.track_running_stats = True  # type: ignore[assignment]
    module.running_mean, module.running_var = mean.clone(), variance.clone()
    module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=mean.device)

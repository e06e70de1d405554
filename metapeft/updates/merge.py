"""One task's update written into a plain copy of the backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metapeft.updates import factors as _factors
from metapeft.updates.batched import BatchedBackbone
from metapeft.updates.formats.modulation import Modulation
from metapeft.updates.layers.call import Statistics
from metapeft.updates.layers.normalization import is_batch_norm
from metapeft.updates.leaf import is_transposed
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
    updates = _factors.updates_of(model.sites, factors, state, 1, 1)
    for name, update in updates.items():
        state[name].add_(update.delta(1)[0])
    for name, update in updates.items():
        if update.modulation is not None:
            _modulate(plain.get_submodule(model.users[name][0]), update.modulation)
    for name, module in plain.named_modules():
        if name in statistics and is_batch_norm(module):
            mean, variance, _ = statistics[name]
            _bake(module, mean[0], variance[0])
    return plain


def _modulate(module: nn.Module, modulation: Modulation) -> None:
    """Write a shift and a gate into a layer's weight and bias; one without a bias gets one."""
    bias: Tensor | None = getattr(module, "bias", None)
    weight: Tensor = module.weight  # type: ignore[assignment]
    scaled, shift = modulation.merged(weight, bias, is_transposed(module))
    weight.copy_(scaled)
    if bias is None:
        module.bias = nn.Parameter(shift, requires_grad=weight.requires_grad)
    else:
        bias.copy_(shift)


def _bake(module: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Make a batch norm use the given statistics `(C,)` in eval mode."""
    module.track_running_stats = True  # type: ignore[assignment]
    module.running_mean, module.running_var = mean.clone(), variance.clone()
    module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=mean.device)

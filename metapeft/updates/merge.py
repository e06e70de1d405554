"""One task's update written into a plain copy of the backbone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metapeft.updates import inputs
from metapeft.updates.normalization import is_batch_norm

if TYPE_CHECKING:
    from metapeft.updates.attached import AttachedModel

Statistics = Mapping[str, tuple[Tensor, Tensor, Tensor]]


def merge(
    model: AttachedModel,
    factors: Mapping[str, Tensor],
    support: Any,
    weights: Mapping[str, Tensor] | None,
    mask: Tensor | None,
) -> nn.Module:
    """See `AttachedModel.merged`."""
    batched = {}
    for name, value in factors.items():
        parameter, _, local = name.rpartition(".")
        site = model.sites.get(parameter)
        if (
            site is not None
            and local == site.format.seed
            and value.dim() > len(site.format.shapes(site.geometry)[local])
        ):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}: one task's factors have no task axis, and a seed per input cannot be merged"
            )
        batched[name] = value.unsqueeze(0)
    statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    if support is not None:
        own = inputs.mapped(support, lambda value: value.unsqueeze(0))
        task_mask = None if mask is None else mask.unsqueeze(0)
        with torch.no_grad():
            model(own, batched, (own, batched, task_mask), weights=weights, statistics=statistics)
    return with_updates(model, batched, weights, statistics)


@torch.no_grad()
def with_updates(
    model: AttachedModel,
    factors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None,
    statistics: Statistics,
) -> nn.Module:
    """A copy of the backbone with one task's update inside, and that task's statistics as buffers.

    Args:
        factors: one task's, `(1, ...)`. statistics: of batch norms, `(1, C)`; empty to keep the buffers.
    """
    plain = copy.deepcopy(model.module).eval()
    parameters = dict(plain.named_parameters())
    for name, value in (weights or {}).items():
        parameters[name].copy_(value)
    for name, local in model.groups(factors).items():
        site = model.sites[name]
        update = inputs.update_of(site, local, 1, 1)
        parameters[name].add_(update.delta(1)[0])
    for name, module in plain.named_modules():
        if name in statistics and is_batch_norm(module):
            bake(module, *statistics[name][:2])
    return plain


def bake(module: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Make a batch norm use the given statistics `(1, C)` in eval mode."""
    module.track_running_stats = True  # type: ignore[assignment]
    module.running_mean = mean[0].clone()
    module.running_var = variance[0].clone()
    module.num_batches_tracked = torch.zeros((), dtype=torch.long)

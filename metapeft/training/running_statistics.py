"""Running statistics of batch norms: who moves them, and by how much."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metapeft.updates.layers.normalization import is_batch_norm

# per batch norm: mean and biased variance (T, C), and the number of values behind them (T,)
Statistics = Mapping[str, tuple[Tensor, Tensor, Tensor]]
# per batch norm: mean and unbiased variance (C)
Means = Mapping[str, tuple[Tensor, Tensor]]


def task_mean(statistics: Statistics) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over tasks of the means and of the unbiased variances, `(C)` each; at least in float32."""
    found = {}
    for name, values in statistics.items():
        mean, variance, count = (v if v.dtype == torch.float64 else v.float() for v in values)
        unbiased = variance * (count / (count - 1).clamp_min(1)).unsqueeze(1)
        found[name] = (mean.detach().mean(0), unbiased.detach().mean(0))
    return found


@torch.no_grad()
def move_buffers(backbone: nn.Module, means: Means) -> None:
    """`running = (1 - momentum) running + momentum mean`, as torch's train mode does once a forward.

    A layer with `momentum=None` keeps the cumulative average.
    """
    for name, (mean, variance) in means.items():
        module = backbone.get_submodule(name)
        running = dict(module.named_buffers(recurse=False))
        if not is_batch_norm(module) or "running_mean" not in running:
            continue
        running["num_batches_tracked"].add_(1)
        momentum = module.momentum
        rate = 1.0 / float(running["num_batches_tracked"]) if momentum is None else float(momentum)  # type: ignore[arg-type]
        running["running_mean"].lerp_(mean.to(running["running_mean"]), rate)
        running["running_var"].lerp_(variance.to(running["running_var"]), rate)

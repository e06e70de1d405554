"""Batch-norm statistics measured afresh, for a backbone whose buffers no training moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.base.finite import refuse_not_finite
from metapeft.base.machine.memory import refuse_too_little
from metapeft.training.image_groups import ImageGroupSampler
from metapeft.training.running_statistics import task_mean
from metapeft.updates.attached import AttachedModel, check_model
from metapeft.updates.copying import copied, viewed


@torch.no_grad()
def calibrate(
    model: AttachedModel, data: Any, *, groups: int = 50, group: int = 64, seed: int = 0
) -> AttachedModel:
    """Measure batch-norm statistics afresh: the mean over `groups` groups of images.

    Args:
        model: what `attach` returned; it is not changed. data: an image data set.
        groups, group: how many groups, of how many images. seed: of their draw.

    Returns: a model on weights of its own, with the new buffers.

    Raises:
        ValueError: what `attach` did not make, numbers below 1, what is no image data set.
        MemoryError: too little for a group.
    """
    check_model(model)
    whole(groups=groups, group=group)
    own, _ = copied(model)
    measured = viewed(own, sites={}, norm="transductive")
    sampler = ImageGroupSampler(data, min(group, len(getattr(data, "labels", ())) or group), seed)
    total: dict[str, tuple[Tensor, Tensor]] = {}
    for i in range(groups):
        statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        x = sampler.batch(i, 1).x
        refuse_not_finite(x, "x")
        try:
            measured(x, {}, statistics=statistics)
        except (MemoryError, RuntimeError) as error:
            refuse_too_little(
                error, f"out of memory with a group of {sampler.size} images: take a smaller group="
            )
            raise
        for name, (mean, variance) in task_mean(statistics).items():
            old = total.get(name, (torch.zeros_like(mean), torch.zeros_like(variance)))
            total[name] = (old[0] + mean / groups, old[1] + variance / groups)
    for name, (mean, variance) in total.items():
        module = own.module.get_submodule(name)
        if module.running_mean is not None:
            module.running_mean.copy_(mean)  # type: ignore[operator]
            module.running_var.copy_(variance)  # type: ignore[operator]
    return own

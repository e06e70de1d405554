"""The centre of heads on normalised features: the mean feature of the training images."""

from __future__ import annotations

from typing import Any

import torch

from metapeft.base.arguments import whole
from metapeft.learner.learner import Learner
from metapeft.training.image_groups import ImageGroupSampler
from metapeft.updates.copying import viewed


@torch.no_grad()
def fit_center(learner: Learner, data: Any, *, images: int = 5000, group: int = 64, seed: int = 0) -> Learner:
    """Measure the centre `c = mean_i f(x_i)` that a head with `normalize="center+l2"` subtracts; the learner keeps it.

    The features are those of the body with the learner's current W0, without updates: measure again after W0 was
    trained. Under `norm="running"` batch norm takes its buffers, else the statistics of each group of images.
    Source: Wang et al. 2019 (SimpleShot, arXiv 1911.04623), section 3.

    Args:
        learner: changed in place; its state and its run have the centre from now on.
        data: the data set of the training classes.
        images: how many of them, drawn without replacement; all where there are fewer.
        group: images in one forward. seed: of their draw.

    Returns: the learner.

    Raises:
        ValueError: a head that reads no centre, numbers below 1, what is no image data set.

    Example:
        >>> import metapeft as mp
        >>> head = mp.heads.Prototypes(normalize="center+l2")
        >>> learner = mp.methods.centroids(mp.backbones.conv4(width=4), head=head)
        >>> fit_center(learner, mp.load_dataset("glyphs"), images=100).center.shape
        torch.Size([4])
    """
    if not isinstance(learner, Learner):
        raise ValueError(f"learner is of type {type(learner).__name__}: an mp.Learner is needed")
    if not learner.reads_center:
        raise ValueError(
            f'the head "{learner.head_name}" reads no centre: give it normalize="center+l2", such as '
            'head=mp.heads.Prototypes(normalize="center+l2")'
        )
    whole(images=images, group=group)
    drawn = ImageGroupSampler(data, min(images, len(getattr(data, "labels", ())) or images), seed)
    x = drawn.batch(0, 1).x[0]
    body = learner.body if learner.model.norm == "running" else viewed(learner.body, norm="transductive")
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(x), group):
        prepared = learner.model.prepared(x[start : start + group].unsqueeze(0))
        total = total + body.features(prepared, {})[0].double().sum(0).cpu()
    learner.center = (total / len(x)).to(learner.like)
    return learner

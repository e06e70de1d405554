"""From class statistics of the support set to the seeds: what an episode asks for is how its classes differ."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from metapeft.base.suggestions import did_you_mean
from metapeft.episodes.class_rows import class_means
from metapeft.generators.generator import Features, Tensors
from metapeft.generators.seed_net import SeedNet, normed
from metapeft.generators.support import Support

PARTS = ("mean", "between", "within", "ratio")
_OF_SEVERAL_SHOTS = ("within", "ratio")
_log = logging.getLogger("metapeft")


@dataclass(frozen=True)
class ClassEncoder(SeedNet):
    """`seed_l = start_l + V_l relu(W z + b) + c_l`, z class statistics of each feature over the support set.

    Its parts, each through a layer norm without parameters, are for each feature

        mean     the mean of the class means
        between  log of the variance of the class means
        within   log of the pooled variance inside the classes
        ratio    log(variance within / total variance): small where the feature tells the classes apart

    each variance with 1e-4 of the task's mean total variance added. At one shot a class has no variance inside:
    `within` and `ratio` are then 0, which the log says once, and the net is one that reads the other two.

    Args:
        hidden: width of the hidden layer.
        parts: which of them, in any order.
        features: a module that gives the features, `"inputs"`, or None for the backbone's body.
        size: the number of features, where `features` is given or the backbone has no classifier.
        bound: the largest change of an entry of a seed; None for none.
        train_features: whether that module is trained too.

    Raises:
        ValueError: unknown parts; from a call, a support set without class labels.

    Source: class-conditional statistics as in CTM (Li et al. 2019, arXiv 1905.11116); the ratio is Fisher's.

    Example:
        >>> net, seeds = ClassEncoder(hidden=8), {"conv1.weight.seed": (4,)}
        >>> parameters = net.start(seeds, 16, torch.Generator().manual_seed(0))
        >>> y = torch.tensor([[0, 0, 1, 1]]).expand(2, -1)
        >>> net(parameters, seeds, Support(torch.randn(2, 4, 16), y, ways=2))["conv1.weight.seed"].shape
        torch.Size([2, 4])
    """

    reads: ClassVar[frozenset[str]] = frozenset({"features", "labels"})
    hidden: int = 64
    parts: Sequence[str] = PARTS
    features: Features = field(default=None, compare=False)
    size: int | None = None
    bound: float | None = None
    train_features: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = (self.parts,) if isinstance(self.parts, str) else tuple(self.parts)
        for part in parts:
            if part not in PARTS:
                raise ValueError(
                    f"parts has {part!r}: there are {', '.join(PARTS)}{did_you_mean(str(part), PARTS)}"
                )
        if not parts or len(set(parts)) < len(parts):
            raise ValueError(
                f"parts={self.parts!r}: each of {', '.join(PARTS)} at most once, and at least one"
            )
        object.__setattr__(self, "parts", parts)

    def width(self, size: int) -> int:
        return size * len(self.parts)

    def encoded(self, parameters: Tensors, support: Support) -> Tensor:
        found = class_statistics(support)
        several = (support.rows.sum(1).amax(1) > 1.5).unsqueeze(-1)  # (T, 1): whether a class has two items
        if not bool(several.all()) and set(self.parts) & set(_OF_SEVERAL_SHOTS):
            _say_one_shot()
        shown = [
            torch.where(several, normed(found[part]), 0.0)
            if part in _OF_SEVERAL_SHOTS
            else normed(found[part])
            for part in self.parts
        ]
        return torch.cat(shown, -1)


def class_statistics(support: Support) -> dict[str, Tensor]:
    """The parts of `ClassEncoder`, `(T, F)` each, before the layer norm.

    Example:
        >>> x = torch.tensor([[[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]]])
        >>> ratio = class_statistics(Support(x, torch.tensor([[0, 0, 1, 1]]), ways=2))["ratio"]
        >>> bool(ratio[0, 0] < ratio[0, 1])  # the first feature tells the classes apart
        True
    """
    rows, features = support.rows, support.features
    count = rows.sum(1)  # (T, N)
    present = (count > 0).to(features).unsqueeze(-1)  # (T, N, 1)
    ways = present.sum(1)
    means = class_means(features, rows)
    mean = (means * present).sum(1) / ways
    between = ((means - mean.unsqueeze(1)).square() * present).sum(1) / ways
    weight, size = support.weight, support.weight.sum(1)
    inside = ((features - torch.bmm(rows, means)).square() * weight).sum(1)
    within = inside / (size - ways).clamp_min(1.0)
    total = ((features - support.mean.unsqueeze(1)).square() * weight).sum(1) / size
    least = 1e-4 * total.mean(-1, keepdim=True) + torch.finfo(features.dtype).tiny ** 0.5
    share = inside / size
    return {
        "mean": mean,
        "between": (between + least).log(),
        "within": (within + least).log(),
        "ratio": (share + least).log() - (total + least).log(),
    }


@functools.cache
def _say_one_shot() -> None:
    _log.warning(
        "ClassEncoder: with one shot a class has no variance inside: of such tasks it reads only the parts mean and "
        "between"
    )

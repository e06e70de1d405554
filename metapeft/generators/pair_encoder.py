"""From the pairs (x, y) of a regression support set to the seeds: a deep set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.arguments import flag, whole
from metapeft.generators.generator import Features, Tensors
from metapeft.generators.seed_net import SeedNet, applied, dense
from metapeft.generators.support import Support


@dataclass(frozen=True)
class PairEncoder(SeedNet):
    """`seed_l = start_l + V_l relu(W z + b) + c_l`, `z = mean_s phi(x_s, y_s / m, x_s y_s / m, log m)`, phi two layers.

    `m^2 = 1 + mean_s y_s^2`, of each target, so that functions of very different size come in alike and their size
    beside. The order of the points plays no part, their number may vary. `x` is what `features` gives, by default the
    inputs themselves.

    Args:
        hidden: width of all hidden layers.
        moments: whether phi reads the products `x_s y_s / m` too, which a small net would have to learn.
        bound: the largest change of an entry of a seed; None for none.
        features: `"inputs"`, a module that gives features, or None for the backbone's body.
        size: the number of features: 1 for functions of one variable.
        outputs: the number of targets a point.
        train_features: whether a feature module is trained too.

    Raises:
        ValueError: sizes below 1; from a call, a support set without regression targets, or with another number of
            them.

    Source: deep sets (Zaheer et al. 2017, arXiv 1703.06114), eq. 2; a task encoder of (x, y) as in MMAML (Vuorio et al.
    2019, arXiv 1910.13616), which reads them by an LSTM.

    Example:
        >>> net, seeds = PairEncoder(hidden=8), {"linear1.weight.seed": (4,)}
        >>> parameters = net.start(seeds, 1, torch.Generator().manual_seed(0))
        >>> x, y = torch.randn(2, 5, 1), torch.randn(2, 5, 1)
        >>> net(parameters, seeds, Support(x, y))["linear1.weight.seed"].shape
        torch.Size([2, 4])
    """

    reads: ClassVar[frozenset[str]] = frozenset({"features", "labels"})
    hidden: int = 64
    moments: bool = True
    bound: float | None = None
    features: Features = field(default="inputs", compare=False)
    size: int | None = 1
    outputs: int = 1
    train_features: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(moments=self.moments)
        whole(outputs=self.outputs)

    def width(self, size: int) -> int:
        return self.hidden

    def encoder(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        inner = size + 2 * self.outputs + size * self.outputs * self.moments
        first = dense("point1", inner, self.hidden, generator)
        return {**first, **dense("point2", self.hidden, self.hidden, generator)}

    def encoded(self, parameters: Tensors, support: Support) -> Tensor:
        x, y = support.features, support.targets.to(support.features)
        if y.shape[-1] != self.outputs:
            raise ValueError(
                f"a point has {y.shape[-1]} targets, and outputs={self.outputs}: say outputs={y.shape[-1]}"
            )
        magnitude = (1.0 + support.over_items(y.square())).sqrt().unsqueeze(1)
        y = y / magnitude
        shown = [x, y, magnitude.log().expand_as(y)]
        if self.moments:
            shown.append((x.unsqueeze(-1) * y.unsqueeze(-2)).flatten(-2))
        hidden = F.relu(applied("point1", parameters, torch.cat(shown, -1)))
        return support.over_items(F.relu(applied("point2", parameters, hidden)))

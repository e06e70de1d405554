"""The regression family of MAML: sines of random amplitude and phase."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import number
from metapeft.datasets.images import check_split, split_hash
from metapeft.datasets.made_up import normal, of_split, spread
from metapeft.datasets.rootless import refuse_root


class Sinusoid:
    """Tasks `y = a sin(x - p)`, `a` uniform in 0.1 .. 5, `p` in 0 .. pi, `x` in -5 .. 5.

    Finn, Abbeel, Levine 2017 (arXiv 1703.03400), section 5.1. Each split is a stream of tasks of its own.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        noise: standard deviation of normal noise on y.

    Example:
        >>> x, y = Sinusoid().draw(counter.words(counter.root(0), 3)[0], 10)
        >>> x.shape, y.shape, bool((y.abs() <= 5).all())
        (torch.Size([3, 10, 1]), torch.Size([3, 10, 1]), True)
    """

    name = "sinusoid"
    classes = None
    amplitude = (0.1, 5.0)
    phase = (0.0, math.pi)
    domain = (-5.0, 5.0)

    def __init__(self, split: str = "train", noise: float = 0.0) -> None:
        check_split(split)
        number(noise=noise)
        self.split = split
        self.noise = noise

    def draw(self, keys: counter.Words, count: int) -> tuple[Tensor, Tensor]:
        """`count` points of one task a key `(T,)`: x and y, `(T, count, 1)` float32."""
        stream = counter.uniforms(of_split(keys, self.split), 2 + 3 * count)
        amplitude = spread(stream[:, 0:1], self.amplitude)
        phase = spread(stream[:, 1:2], self.phase)
        x = spread(stream[:, 2 : 2 + count], self.domain)
        y = amplitude * np.sin(x - phase)
        if self.noise:
            y = y + self.noise * normal(stream[:, 2 + count : 2 + 2 * count], stream[:, 2 + 2 * count :])
        return torch.from_numpy(x).float()[..., None], torch.from_numpy(y).float()[..., None]

    @property
    def split_hash(self) -> str:
        """The hash of the split's name: there are no classes."""
        return split_hash(self.split, [])

    def __repr__(self) -> str:
        return f"Sinusoid({self.split}, noise={self.noise})"


def read_sinusoid(
    root: str | os.PathLike[str] | None = None, split: str = "train", *, noise: float = 0.0
) -> Sinusoid:
    """The family by its name; raises ValueError if `root` is given, since nothing is read.

    Example:
        >>> read_sinusoid(split="test").split
        'test'
    """
    refuse_root("sinusoid", root, "whose tasks are made up")
    return Sinusoid(split, noise)

"""Regression tasks of several kinds: the mixed functions of MMAML and of ARML."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import number
from metapeft.datasets.function_kinds import FAMILIES, Range
from metapeft.datasets.images import check_split, split_hash
from metapeft.datasets.made_up import normal, of_split, spread
from metapeft.datasets.rootless import refuse_root

_MOST = 4  # coefficients of one function


class Functions:
    """Tasks of which each is a function of one of several kinds, drawn equally often; the sampler knows which.

    Coefficients are uniform, x is uniform in the domain, and normal noise is on all of y, that of the query set too:
    no model has less error than `noise^2`.

    `protocol="mmaml"`, one input in -5 .. 5, coefficients in -3 .. 3 unless said:

    - sine: `a sin(x - p)`, `a` in 0.1 .. 5, `p` in 0 .. pi
    - line: `a x + b`
    - quadratic: `a (x - c)^2 + b`, `a` in 0.02 .. 0.15 or in -0.15 .. -0.02
    - abs: `a |x - c| + b`
    - tanh: `a tanh(x - c) + b`

    `protocol="arml"`, two inputs in 0 .. 5, of which z is 1 where the function does not depend on it:

    - sinusoid: `a sin(w x + b)`, `a` in 0.1 .. 5, `w` in 0.8 .. 1.2, `b` in 0 .. 2 pi
    - line: `a x + b`, both in -3 .. 3
    - quadratic: `a x^2 + b x + c` in -0.2 .. 0.2, -2 .. 2, -3 .. 3
    - cubic: `a x^3 + b x^2 + c x + d` in -0.1 .. 0.1, -0.2 .. 0.2, -2 .. 2, -3 .. 3
    - quadratic surface: `a x^2 + b z^2`, both in -1 .. 1
    - ripple: `sin(-a (x^2 + z^2)) + b` in -0.2 .. 0.2, -3 .. 3

    Args:
        split: `"train"`, `"val"` or `"test"`: each is a stream of tasks of its own.
        noise: standard deviation; 0.3 in both papers.
        protocol: `"mmaml"` or `"arml"`.
        domain: of each input, in place of the protocol's. ARML's paper says 0 .. 5; its code, as it was published,
            draws from -5 .. 5.

    Source: Vuorio et al. 2019 (arXiv 1910.13616), five modes; Yao et al. 2020 (arXiv 2001.00745), 2-D regression.
    Ranges are those of their code: vuoristo/MMAML-Regression, `maml/datasets/simple_functions.py`, and huaxiuyao/ARML,
    `data_generator.py`. MMAML's batches have equally many of each kind; here the kind is drawn for each task.

    Example:
        >>> data, keys = Functions(), counter.words(counter.root(0), 3)[0]
        >>> x, y = data.draw(keys, 10)
        >>> x.shape, y.shape, [data.kinds[kind] for kind in data.kinds_of(keys)]
        (torch.Size([3, 10, 1]), torch.Size([3, 10, 1]), ['abs', 'sine', 'tanh'])
    """

    classes = None

    def __init__(
        self,
        split: str = "train",
        noise: float = 0.3,
        protocol: str = "mmaml",
        domain: Range | None = None,
    ) -> None:
        check_split(split)
        number(noise=noise)
        if protocol not in FAMILIES:
            raise ValueError(f"protocol={protocol!r}: allowed are {' and '.join(map(repr, FAMILIES))}")
        self.split, self.noise, self.protocol = split, noise, protocol
        self.domain = FAMILIES[protocol].domain if domain is None else _checked(domain)
        self.name = "functions" if protocol == "mmaml" else f"functions-{protocol}"
        self.kinds = tuple(kind.name for kind in FAMILIES[protocol].kinds)

    def kinds_of(self, keys: counter.Words) -> counter.Integers:
        """The kind of each task, `(T,)` places in `kinds`; keys `(T,)` as for `draw`."""
        return counter.integers(counter.words(of_split(keys, self.split), 1)[:, 0], 0, len(self.kinds) - 1)

    def draw(self, keys: counter.Words, count: int) -> tuple[Tensor, Tensor]:
        """`count` points of one task a key `(T,)`: x `(T, count, inputs)` and y `(T, count, 1)`, float32.

        Fewer points are the first of more.
        """
        family, tasks = FAMILIES[self.protocol], len(keys)
        inputs = family.inputs
        kinds = self.kinds_of(keys)
        stream = counter.uniforms(of_split(keys, self.split), 1 + _MOST + count * (inputs + 2))
        points = stream[:, 1 + _MOST :].reshape(tasks, count, inputs + 2)
        x = spread(points[..., :inputs], self.domain)
        y = np.empty((tasks, count))
        for place, kind in enumerate(family.kinds):
            mine = np.flatnonzero(kinds == place)
            if kind.constant:
                x[mine, :, 1] = 1.0
            drawn = stream[mine, 1 : 1 + len(kind.coefficients)].T[..., None]
            y[mine] = kind.value(x[mine], *(of(uniform) for of, uniform in zip(kind.coefficients, drawn)))
        if self.noise:
            y = y + self.noise * normal(points[..., inputs], points[..., inputs + 1])
        return torch.from_numpy(x).float(), torch.from_numpy(y).float()[..., None]

    @property
    def split_hash(self) -> str:
        """The hash of the split's name, the kinds, the domain and the noise."""
        return split_hash(
            self.split, [*self.kinds, f"{self.domain[0]:g} .. {self.domain[1]:g}", f"{self.noise:g}"]
        )

    def __repr__(self) -> str:
        return f"Functions({self.split}, {self.protocol}, noise={self.noise})"


def read_functions(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    noise: float = 0.3,
    protocol: str = "mmaml",
    domain: Range | None = None,
) -> Functions:
    """The family by its name; arguments of `Functions`, and ValueError if `root` is given, since nothing is read.

    Example:
        >>> read_functions(split="test", protocol="arml").kinds[-1]
        'ripple'
    """
    refuse_root("functions", root, "whose tasks are made up")
    return Functions(split, noise, protocol, domain)


def _checked(domain: object) -> Range:
    if not isinstance(domain, tuple | list) or len(domain) != 2:
        raise ValueError(f"domain={domain!r}: allowed are two numbers, the lower first")
    low, high = domain
    number(-float("inf"), **{"domain[0]": low, "domain[1]": high})
    if not low < high:
        raise ValueError(f"domain={domain!r}: allowed are two numbers, the lower first")
    return float(low), float(high)

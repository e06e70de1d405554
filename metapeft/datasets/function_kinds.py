"""Kinds of functions, with the ranges of their coefficients, as two papers' public code has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from metapeft.datasets.made_up import Floats, either_sign, spread

Range = tuple[float, float]


@dataclass(frozen=True)
class Coefficient:
    """Uniform between its bounds; with `signs`, of either sign.

    Example:
        >>> Coefficient(1.0, 3.0)(np.array([0.5])), Coefficient(1.0, 3.0, signs=True)(np.array([0.25]))
        (array([2.]), array([-2.]))
    """

    low: float
    high: float
    signs: bool = False

    def __call__(self, uniform: Floats) -> Floats:
        return (either_sign if self.signs else spread)(uniform, (self.low, self.high))


@dataclass(frozen=True)
class Kind:
    """Functions `y = value(x, *coefficients)`.

    Args:
        name: of the kind.
        coefficients: in the order in which `value` takes them.
        value: `x` `(T, n, inputs)` and coefficients `(T, 1)` -> `(T, n)`.
        constant: the second input is 1, and the function one of the first alone.
    """

    name: str
    coefficients: Sequence[Coefficient]
    value: Callable[..., Floats]
    constant: bool = False


@dataclass(frozen=True)
class Family:
    """Kinds that come equally often, on one domain of every input."""

    kinds: tuple[Kind, ...]
    inputs: int
    domain: Range


_THREE, _TWO, _ONE = Coefficient(-3.0, 3.0), Coefficient(-2.0, 2.0), Coefficient(-1.0, 1.0)
_FIFTH, _TENTH = Coefficient(-0.2, 0.2), Coefficient(-0.1, 0.1)
_AMPLITUDE = Coefficient(0.1, 5.0)


def _squares(x: Floats) -> Floats:
    found: Floats = (x**2).sum(-1)
    return found


# github.com/vuoristo/MMAML-Regression, maml/datasets/simple_functions.py, FiveFunctionsMetaDataset
MMAML = Family(
    (
        Kind("sine", (_AMPLITUDE, Coefficient(0.0, math.pi)), lambda x, a, p: a * np.sin(x[..., 0] - p)),
        Kind("line", (_THREE, _THREE), lambda x, a, b: a * x[..., 0] + b),
        Kind(
            "quadratic",
            (Coefficient(0.02, 0.15, signs=True), _THREE, _THREE),
            lambda x, a, c, b: a * (x[..., 0] - c) ** 2 + b,
        ),
        Kind("abs", (_THREE, _THREE, _THREE), lambda x, a, c, b: a * np.abs(x[..., 0] - c) + b),
        Kind("tanh", (_THREE, _THREE, _THREE), lambda x, a, c, b: a * np.tanh(x[..., 0] - c) + b),
    ),
    inputs=1,
    domain=(-5.0, 5.0),
)

# github.com/huaxiuyao/ARML, data_generator.py, generate_2D_batch; the domain is the paper's
ARML = Family(
    (
        Kind(
            "sinusoid",
            (_AMPLITUDE, Coefficient(0.8, 1.2), Coefficient(0.0, 2 * math.pi)),
            lambda x, a, w, b: a * np.sin(w * x[..., 0] + b),
            constant=True,
        ),
        Kind("line", (_THREE, _THREE), lambda x, a, b: a * x[..., 0] + b, constant=True),
        Kind(
            "quadratic",
            (_FIFTH, _TWO, _THREE),
            lambda x, a, b, c: a * x[..., 0] ** 2 + b * x[..., 0] + c,
            constant=True,
        ),
        Kind(
            "cubic",
            (_TENTH, _FIFTH, _TWO, _THREE),
            lambda x, a, b, c, d: a * x[..., 0] ** 3 + b * x[..., 0] ** 2 + c * x[..., 0] + d,
            constant=True,
        ),
        Kind("quadratic surface", (_ONE, _ONE), lambda x, a, b: a * x[..., 0] ** 2 + b * x[..., 1] ** 2),
        Kind("ripple", (_FIFTH, _THREE), lambda x, a, b: np.sin(-a * _squares(x)) + b),
    ),
    inputs=2,
    domain=(0.0, 5.0),
)
FAMILIES = {"mmaml": MMAML, "arml": ARML}

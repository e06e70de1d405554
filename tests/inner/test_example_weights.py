"""Weighted regressions at weights of 0 and below: slopes from 0 upwards, and what is refused."""

from __future__ import annotations

import pytest
import torch

import metapeft as mp
from metapeft.hypergradients import hypergradient
from metapeft.inner import Ridge, ridge
from tests.inner.test_closed_form import WEIGHTED, data


@pytest.mark.parametrize("zeros", [1, 2, 3], ids="{} of 3 examples".format)
@pytest.mark.parametrize(("n", "d"), [(3, 2), (3, 8)])
@pytest.mark.parametrize("name", WEIGHTED)
def test_an_example_of_weight_0_has_the_slopes_that_it_has_from_0_upwards(name, n, d, zeros):
    """First and second ones, in the space of the features and in that of the examples alike."""
    x, y, *_, s = data(n, d)
    s[:zeros] = 0.0
    upper = torch.linspace(0.5, 1.5, d, dtype=torch.float64)

    def value(s):
        w = WEIGHTED[name](x, y, s)
        scores = upper @ (w[:, 0] if w.ndim == 2 else w)
        return scores + scores.square()

    def slope(s):
        leaf = s.clone().requires_grad_()
        return torch.autograd.grad(value(leaf), leaf)[0]

    def curvature(s, way):
        leaf = s.clone().requires_grad_()
        (first,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
        return torch.autograd.grad((first * way).sum(), leaf)[0]

    h = 1e-4  # errors of h^2 times a third derivative, and of rounding over h
    way = torch.eye(n, dtype=torch.float64)[0]
    one_sided = (-3 * value(s) + 4 * value(s + h * way) - value(s + 2 * h * way)) / (2 * h)
    assert slope(s)[0].item() == pytest.approx(one_sided.item(), rel=1e-4)
    one_sided = (-3 * slope(s) + 4 * slope(s + h * way) - slope(s + 2 * h * way)) / (2 * h)
    torch.testing.assert_close(curvature(s, way), one_sided, rtol=1e-4, atol=1e-5)


def test_a_learned_weight_of_0_has_the_hypergradient_that_it_has_just_above_0():
    x, y, xv, yv, s = data(4, 9)
    start = {"w": torch.zeros(9, 2, dtype=torch.float64)}
    solver = Ridge(lambda u: (x, y), 0.5, weights=lambda u: u["s"])

    def gradient(first):
        u = {"s": torch.cat([torch.tensor([first], dtype=torch.float64), s[1:]])}
        return hypergradient(lambda u, w: (xv @ w["w"] - yv).square().sum(), None, u, start, solver).grads[
            "s"
        ]

    torch.testing.assert_close(gradient(0.0), gradient(1e-7), rtol=1e-5, atol=1e-6)
    assert gradient(0.0)[0].abs() > 1.0


@pytest.mark.parametrize("n", [3, 20])
def test_all_weights_of_0_leave_nothing_but_the_penalty(n):
    x, y, *_ = data(n, 6)
    assert not ridge(x, y, 0.3, torch.zeros(n, dtype=torch.float64)).any()


@pytest.mark.parametrize("bad", [-0.1, float("nan")])
@pytest.mark.parametrize(("n", "d"), [(3, 2), (3, 8)])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_below_0_is_refused_and_one_that_is_no_number_too(name, n, d, bad):
    """In either space: a negative weight was cut to 0 in one and taken in the other."""
    x, y, *_, s = data(n, d)
    s[1] = bad
    with pytest.raises(
        ValueError if bad < 0 else mp.NumericalError, match="0 or more" if bad < 0 else "finite"
    ):
        WEIGHTED[name](x, y, s)

"""hypertorch's notebook: a logistic regression with a learned penalty of each weight, and the numbers that it prints.

Source: prolearner/hypertorch, examples/logistic_regression.ipynb, which computes in float32; ours are in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metapeft as mp
from metapeft.hypergradients import CG, Exact, Neumann, Truncated

pytestmark = pytest.mark.peers
SIZE, STEPS, RATE = 20, 100, 0.1
FLOAT32 = 1e-6  # of numbers between 0.2 and 0.7 that were summed in float32


def data() -> dict[str, Tensor]:
    """As its cell draws them, and splits them as `train_test_split` does."""
    numbers = np.random.RandomState(1)
    oracle, x = numbers.randn(SIZE), numbers.randn(1000, SIZE)
    y = (x @ oracle + 0.1 * numbers.randn(1000) > 0).astype(float)
    order = numbers.permutation(1000)
    parts = {"val": order[:500], "train": order[500:]}
    return {
        f"{name}_{part}": torch.from_numpy(value[at])
        for name, value in (("x", x), ("y", y))
        for part, at in parts.items()
    }


DATA = data()


def inner(u: Any, w: Any) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(DATA["x_train"] @ w["w"], DATA["y_train"])
    return loss + (u["penalty"] * w["w"].square()).sum() / 2


def outer(u: Any, w: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(DATA["x_val"] @ w["w"], DATA["y_val"])


def found(method: Any, steps: int = STEPS) -> mp.hypergradients.Result:
    u, w0 = {"penalty": torch.ones(SIZE).double()}, {"w": torch.zeros(SIZE).double()}
    return mp.hypergradient(outer, inner, u, w0, mp.inner.SGD(steps, RATE), method)


def test_the_inner_losses_that_it_prints() -> None:
    printed = {
        0: 0.6931472420692444,
        10: 0.6285591125488281,
        20: 0.6243906021118164,
        30: 0.6241106390953064,
        40: 0.6240913271903992,
        99: 0.6240898370742798,
    }
    losses = found("unroll").log["inner_values"]
    assert {t: losses[t].item() for t in printed} == pytest.approx(printed, rel=FLOAT32)


def test_reverse_over_all_steps_is_the_unrolled_gradient() -> None:
    """Its last printed line: their difference "should be 0": 0.0."""
    expected = found("unroll").grads["penalty"]
    for method in ("recompute", "forward", Truncated(STEPS)):
        difference = (found(method).grads["penalty"] - expected).sum().item()
        assert abs(difference) < 1e-15


@pytest.mark.parametrize("k", [1, 3, 10, 30, 99])
def test_its_fixed_point_is_our_neumann_series_and_its_reverse_our_truncation(k: int) -> None:
    """Its map is the step `w - 0.1 grad`, so that k of its iterations are k terms at the step's rate."""
    w = found("unroll").w["w"]
    u = torch.ones(SIZE).double().requires_grad_()
    leaf = w.clone().requires_grad_()
    (g,) = torch.autograd.grad(outer({}, {"w": leaf}), leaf)
    (slope,) = torch.autograd.grad(inner({"penalty": u}, {"w": leaf}), leaf, create_graph=True)
    mapped = leaf - RATE * slope
    v = torch.zeros_like(g)
    for _ in range(k):  # of its `fixed_point`
        v = torch.autograd.grad(mapped, leaf, v, retain_graph=True)[0] + g
    (expected,) = torch.autograd.grad(mapped, u, v)
    torch.testing.assert_close(found(Neumann(k, RATE)).grads["penalty"], expected, rtol=1e-9, atol=1e-15)
    # at rest its reverse over the last k steps is the same: each of them has the derivatives of the last
    torch.testing.assert_close(found(Truncated(k)).grads["penalty"], expected, rtol=1e-3, atol=1e-8)


def test_cg_ends_where_the_others_go() -> None:
    """Its figures of 1 to 99 iterations: all three end in the implicit derivative, CG within a few iterations."""
    exact = found(Exact()).grads["penalty"]
    torch.testing.assert_close(found(CG(12)).grads["penalty"], exact, rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(found(Neumann(99, RATE)).grads["penalty"], exact, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(found("unroll").grads["penalty"], exact, rtol=1e-3, atol=1e-8)
    errors = [float((found(CG(k)).grads["penalty"] - exact).norm()) for k in (1, 3, 6, 9)]
    assert errors == sorted(errors, reverse=True)


def test_the_validation_losses_of_its_outer_steps() -> None:
    """SGD at 1 with momentum 0.9 on the last ten steps' reverse gradient, penalties kept above 1e-8."""
    printed = {
        0: 0.5743989944458008,
        10: 0.5337678790092468,
        20: 0.3615218698978424,
        30: 0.3225042521953583,
        40: 0.2987646162509918,
        50: 0.2944669723510742,
    }
    penalty = torch.ones(SIZE).double()
    optimizer = torch.optim.SGD([penalty], lr=1.0, momentum=0.9)
    w0, solver, losses = {"w": torch.zeros(SIZE).double()}, mp.inner.SGD(STEPS, RATE), []
    for _ in range(51):
        result = mp.hypergradient(outer, inner, {"penalty": penalty}, w0, solver, Truncated(10))
        losses.append(result.value.item())
        penalty.grad = result.grads["penalty"]
        optimizer.step()
        penalty.clamp_(min=1e-8)
    assert {t: losses[t] for t in printed} == pytest.approx(printed, rel=FLOAT32)

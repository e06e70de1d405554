"""Logistic and class-weighted ridge heads: the minimum, masks, and gradients through a learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch

import metapeft as mp
from metapeft.heads import Logistic, Ridge, WeightedRidge
from metapeft.heads.table import registry
from metapeft.inner import SGD
from tests.learner.helpers import images, learner_of

# tasks of 2, of more features than items and of fewer; the second task lacks a class and an item
SIZES = [(7, 3), (7, 12)]
# heads whose gradients in a learner are compared with slopes of its value
SLOPES = ("logistic", "weighted-ridge", "cosine")


def episode(items: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(items + width)
    x = torch.randn(2, items, width, generator=g, dtype=torch.float64)
    y = torch.tensor([[0, 0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 0, 2]])
    mask = torch.ones(2, items, dtype=torch.bool)
    mask[1, -1] = False
    return x, y, mask


@pytest.mark.parametrize(("items", "width"), SIZES)
@pytest.mark.parametrize("penalty", [0.1, 3.0])
def test_logistic_is_the_minimum_that_scipy_finds(items: int, width: int, penalty: float) -> None:
    x, y, mask = episode(items, width)
    tensors = Logistic(penalty).start(x, y, 3, mask)
    for t in range(2):
        kept, classes = mask[t], int(y[t][mask[t]].max()) + 1
        X = np.hstack([x[t][kept].numpy(), np.ones((int(kept.sum()), 1))])
        Y = np.eye(classes)[y[t][kept].numpy()]

        def loss(flat: Any, X: Any = X, Y: Any = Y) -> tuple[float, Any]:
            w = flat.reshape(X.shape[1], Y.shape[1])
            logits = X @ w
            value = (scipy.special.logsumexp(logits, axis=1) - (Y * logits).sum(1)).sum()
            slope = X.T @ (scipy.special.softmax(logits, axis=1) - Y) + penalty * w
            return value + penalty / 2 * (w**2).sum(), slope.ravel()

        start = np.zeros(X.shape[1] * classes)
        fit = scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9})
        expected = fit.x.reshape(X.shape[1], classes)
        found = tensors["head.weight"][t, :classes].numpy()
        np.testing.assert_allclose(found, expected[:-1].T, rtol=1e-5, atol=1e-6)  # SciPy's tolerance
        np.testing.assert_allclose(
            tensors["head.bias"][t, :classes].numpy(), expected[-1], rtol=1e-5, atol=1e-6
        )
    logits = Logistic(penalty).logits(x, tensors)
    assert (torch.softmax(logits[1], -1)[:, 2] == 0).all()  # the class that the second task does not have


@pytest.mark.parametrize(("items", "width"), SIZES)
def test_weighted_ridge_weighs_every_class_the_same(items: int, width: int) -> None:
    x, y, mask = episode(items, width)
    tensors = WeightedRidge(penalty=0.5, scale=2.0).start(x, y, 3, mask)
    for t in range(2):
        kept = mask[t]
        X, Y = x[t][kept], torch.eye(3).double()[y[t][kept]]
        count = Y.sum(0)
        weights = len(X) / ((count > 0).sum() * count[y[t][kept]])
        assert weights.sum().item() == pytest.approx(len(X))
        system = X.T @ (weights[:, None] * X) + 0.5 * torch.eye(width).double()
        expected = 2.0 * torch.linalg.solve(system, X.T @ (weights[:, None] * Y))
        # the logarithm of the penalty starts as a float32
        torch.testing.assert_close(tensors["head.weight"][t], expected.T, rtol=1e-6, atol=1e-8)


def test_weighted_ridge_is_ridge_where_classes_have_equally_many_items() -> None:
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    for name, value in Ridge(0.3).start(x, y, 3).items():
        torch.testing.assert_close(WeightedRidge(0.3).start(x, y, 3)[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("head", SLOPES)
@pytest.mark.parametrize("inner", [None, SGD(2, 0.3)], ids=["direct", "adapted"])
def test_gradients_through_a_learner_are_slopes_of_its_value(head: str, inner: Any) -> None:
    """Along random directions by central differences; with an inner loop the head is differentiated twice."""
    groups = ("weights", "head") if registry.resolve(head)().learned() else ("weights",)
    options = {"outer": groups, "head": head, "inner": inner, "norm": "support"}
    learner = learner_of("lora", **options)[0]
    batch = images(masked=True)
    found, h = learner.hypergradient(batch), 2e-5
    for group in groups:
        g = torch.Generator().manual_seed(3)
        way = {
            name: torch.randn(value.shape, generator=g, dtype=torch.float64).to(value)
            for name, value in learner.trained.items()
            if name.startswith(group)
        }
        values = []
        for sign in (1, -2, 1):
            for name, step in way.items():
                learner.trained[name].add_(step, alpha=sign * h)
            values.append(learner.hypergradient(batch).value.double().item())
        slope = (values[0] - values[1]) / (2 * h)
        expected = sum(float((found.grads[name] * step).sum()) for name, step in way.items())
        assert slope == pytest.approx(expected, rel=2e-5, abs=1e-8), group  # of the order h^2


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("inf"), float("nan")])
def test_a_penalty_that_is_not_above_0_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match="penalty"):
        Logistic(penalty)
    with pytest.raises(ValueError, match="penalty"):
        WeightedRidge(penalty)


def test_the_names_resolve() -> None:
    for name in ("logistic", "weighted-ridge"):
        learner = mp.Learner(mp.attach(mp.backbones.mlp(4, 3, hidden=(8,)), {}), outer=("head",), head=name)
        assert learner.head_name == name
        assert "head.log_penalty" in learner.trained

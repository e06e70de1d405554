"""The Learner that trains networks, on the linear model: the closed forms, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from theory.bridge.linear import (
    backbone,
    episodes,
    learner,
    learner_gradient,
    sampled,
    statistics,
)
from theory.models.metalearners import METHODS, outer_gradient, solution, spread_covariances
from theory.models.problems import draw_truth, population
from theory.models.solvers import pooled_least_squares, reduced_rank_regression


class Same:
    """The same tasks in every outer step."""

    def __init__(self, batch):
        self.kept = batch

    def batch(self, start, count):
        return self.kept


def unit(tasks, d):
    return np.stack([np.eye(d)] * tasks)


def singular(matrix):
    return np.linalg.svd(matrix)[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("spread", "rate", "steps"), [(0.0, 0.1, 1), (0.0, 1.4, 4), (0.5, 0.5, 5), (0.5, 0.9, 2)]
)
def test_outer_gradients_are_the_closed_forms(method, spread, rate, steps):
    generator = np.random.default_rng(1)
    maps, covariances = draw_truth(generator, 5, 3, 1).maps, spread_covariances(generator, 3, 5, spread)
    base = generator.standard_normal((5, 5))
    found = learner_gradient(method, base, maps, covariances, rate, steps)
    expected = outer_gradient(method, base, maps, covariances, rate, steps)
    # rounding; iMAML's inner descent and its conjugate gradients stop at 1e-10
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rate", "steps"), [(0.3, 1), (1.7, 3)])
def test_theorem_6_holds_for_the_learner(method, rate, steps):
    """Its stationary point, of an outer gradient that is affine in A, is standard retraining's solution."""
    maps = draw_truth(np.random.default_rng(2), 5, 3, 1).maps
    found = solution(method, maps, unit(3, 5), rate, steps, gradient=learner_gradient)
    expected = pooled_least_squares(population(maps))
    assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)


def test_reptile_trained_by_the_trainer_ends_at_the_mean():
    maps = draw_truth(np.random.default_rng(3), 4, 3, 1).maps
    made = learner("reptile", np.zeros((4, 4)), unit(3, 4), rate=0.5, steps=2)
    trainer = mp.BilevelTrainer(made, torch.optim.SGD, lr=1.0, tasks_per_step=3, progress=False)
    trainer.fit(Same(episodes(maps, unit(3, 4))), 30)
    found = made.trained["weights.weight"].detach().numpy()
    # the error shrinks by (1 - eta)^K = 1/4 a step, so 30 steps leave rounding only
    assert np.linalg.norm(found - maps.mean(0)) <= 1e-12 * np.linalg.norm(maps.mean(0))


def test_standard_retraining_is_pooled_least_squares():
    """Without an inner loop the Learner's outer gradient on finite, noisy samples is 0 there and only there."""
    generator = np.random.default_rng(4)
    x = generator.standard_normal((3, 20, 4))
    y = x @ draw_truth(generator, 4, 3, 1).maps.swapaxes(-1, -2) + 0.1 * generator.standard_normal(x.shape)
    batch = sampled(x, y)
    exact = pooled_least_squares(statistics(batch))
    sizes = []
    for base in (exact, exact + 0.01 * np.eye(4)):
        made = mp.Learner(mp.attach(backbone(base), {}), outer=("weights",), loss=F.mse_loss)
        sizes.append(float(made.hypergradient(batch).grads["weights.weight"].norm()))
    assert sizes[0] <= 1e-11 * sizes[1]


def lora_ml(base, rank, inner):
    """LoRA-ML as published: W0 by the partial gradient at the adapted factors, on the same data."""
    return mp.methods.lora_ml(
        backbone(base), rank=rank, inner=inner, head="learned", hypergradient="envelope", inner_data="both",
        loss=F.mse_loss,
    )  # fmt: skip


def test_lora_ml_has_the_gradient_of_its_objective():
    """`d/dA of 1/T sum_t 1/d ||(A + B_t A_t - W_t) Sigma_t^{1/2}||^2` at any A and factors."""
    generator = np.random.default_rng(5)
    maps, covariances = draw_truth(generator, 4, 3, 1).maps, spread_covariances(generator, 3, 4, 0.5)
    base = generator.standard_normal((4, 4))
    up, down = generator.standard_normal((3, 4, 2)), generator.standard_normal((3, 2, 4))
    start = {"weight.A": torch.from_numpy(down), "weight.B": torch.from_numpy(up)}
    made = lora_ml(base, 2, mp.inner.SGD(0, 0.1))
    found = made.hypergradient(episodes(maps, covariances), start).grads["weights.weight"].numpy()
    expected = (2 / 4) * ((base + up @ down - maps) @ covariances).mean(0)
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize(("tasks", "seed", "steps"), [(2, 0, 400), (3, 2, 400)])
def test_lora_ml_finds_what_theorems_2_and_3_say(tasks, seed, steps):
    """Warm-started LoRA-ML at zero loss: rank 2k from A* and 3k at test for T = 2, A* itself for T = 3."""
    truth = draw_truth(np.random.default_rng(seed), 4, tasks + 1, 1)
    made = lora_ml(np.zeros((4, 4)), 1, mp.inner.SGD(3, 0.15))
    trainer = mp.BilevelTrainer(
        made, torch.optim.SGD, lr=1.0, tasks_per_step=tasks, warm_start=True, progress=False
    )
    log = trainer.fit(Same(episodes(truth.maps[:tasks], unit(tasks, 4))), steps, log_every=steps)
    assert trainer.learner is made
    base = made.trained["weights.weight"].detach().numpy()
    off, residual = singular(base - truth.base), singular(truth.maps[-1] - base)
    assert log[-1]["loss"] < 0.1  # a mean over all steps
    # linear convergence: by then the loss is below 1e-16, and A has the square root of its error
    if tasks == 2:
        assert off[1] > 1e-3
        assert off[2] < 1e-7
        assert residual[2] > 1e-3
        assert residual[3] < 1e-7
    else:
        assert off[0] < 1e-7
        assert residual[0] > 1
        assert residual[1] < 1e-7


@pytest.mark.parametrize("rank", [1, 2])
def test_lora_at_test_is_reduced_rank_regression(rank):
    """Adaptation from the zero update ends at the exact minimum over updates of that rank."""
    generator = np.random.default_rng(0)
    truth = draw_truth(generator, 4, 1, 2)
    x = generator.standard_normal((1, 30, 4))
    y = x @ truth.maps.swapaxes(-1, -2) + 0.3 * generator.standard_normal(x.shape)
    batch = sampled(x, y)
    made = mp.methods.sr_lora(
        backbone(truth.base), rank=rank, inner=mp.inner.SGD(700, 0.3), head="learned", loss=F.mse_loss
    )
    factors = made.adapt_many(batch.support_x, batch.support_y, ways=1).factors
    found = (factors["weight.B"][0] @ factors["weight.A"][0]).numpy()
    expected = reduced_rank_regression(truth.base, statistics(batch).task(0), rank)
    # linear convergence: 700 steps leave less
    assert np.abs(found - expected).max() <= 1e-8 * np.abs(expected).max()

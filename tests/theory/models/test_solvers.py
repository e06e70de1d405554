"""Exact solvers: against libraries on raw samples, against each other, and zero gradient."""

import numpy as np
import pytest
from scipy.optimize import minimize

from theory.models.problems import Statistics, draw_truth, population, sample
from theory.models.solvers import (
    MetaObjective,
    alternate,
    input_loss,
    meta_least_squares,
    pooled_least_squares,
    reduced_rank_regression,
)


def raw(seed, d, tasks, count):
    """Samples and their statistics."""
    generator = np.random.default_rng(seed)
    x, y = generator.standard_normal((2, tasks, d, count))
    turned = x.swapaxes(-1, -2)
    counts = np.full(tasks, float(count))
    return x, y, Statistics(x @ turned, y @ turned, y @ y.swapaxes(-1, -2), counts)


@pytest.mark.parametrize(("d", "tasks", "count"), [(3, 2, 40), (6, 1, 20), (5, 4, 200)])
def test_pooled_least_squares_is_lstsq_on_all_samples(d, tasks, count):
    x, y, statistics = raw(0, d, tasks, count)
    stacked = np.concatenate([*x], 1), np.concatenate([*y], 1)
    expected = np.linalg.lstsq(stacked[0].T, stacked[1].T)[0].T
    np.testing.assert_allclose(pooled_least_squares(statistics), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("d", "rank", "count"), [(4, 1, 30), (5, 2, 12), (6, 3, 100), (5, 5, 40)])
def test_no_factors_beat_reduced_rank_regression(d, rank, count):
    x, y, statistics = raw(1, d, 1, count)
    base = np.random.default_rng(2).standard_normal((d, d))
    update = reduced_rank_regression(base, statistics.task(0), rank)
    assert np.linalg.matrix_rank(update) == rank
    best = ((y[0] - (base + update) @ x[0]) ** 2).sum()

    def objective(flat):
        left, right = flat.reshape(2, d, rank)
        residual = (base + left @ right.T) @ x[0] - y[0]
        slope = 2 * residual @ x[0].T
        return (residual**2).sum(), np.concatenate([(slope @ right).ravel(), (slope.T @ left).ravel()])

    starts = np.random.default_rng(3).standard_normal((8, 2 * d * rank))
    options = {"gtol": 1e-9, "maxiter": 5000, "maxfun": 10000}
    found = (minimize(objective, start, jac=True, method="L-BFGS-B", options=options) for start in starts)
    reached = min(one.fun for one in found)
    assert best == pytest.approx(reached, rel=1e-6)  # the search stops where its value no longer moves
    assert best <= reached * (1 + 1e-12)


def test_fewer_samples_than_dimensions_give_the_least_norm():
    x, y, statistics = raw(4, 6, 1, 3)
    update = reduced_rank_regression(np.zeros((6, 6)), statistics.task(0), 6)
    np.testing.assert_allclose(update, y[0] @ np.linalg.pinv(x[0]), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("d", "k", "T", "symmetric"), [(6, 1, 3, True), (8, 2, 4, True), (6, 1, 3, False), (5, 1, 2, True)]
)
def test_meta_solution_has_zero_gradient_and_beats_the_truth(d, k, T, symmetric):
    generator = np.random.default_rng(5)
    truth = draw_truth(generator, d, T, k, symmetric)
    tasks = sample(generator, truth.maps, 300, 0.1)
    found = meta_least_squares(tasks, k, generator, symmetric=symmetric)
    assert found.gradient < 1e-7  # of the data's own slope; the value's rounding ends the search there
    objective = MetaObjective(tasks, k, symmetric)
    at_truth = np.concatenate(
        [part.ravel() for part in ((truth.left,) if symmetric else (truth.left, truth.right))]
    )
    assert found.excess <= objective(at_truth)[0]


def test_the_objective_is_the_published_loss_less_a_constant():
    generator = np.random.default_rng(6)
    truth = draw_truth(generator, 4, 3, 1)
    x, y, statistics = raw(6, 4, 3, 25)
    objective = MetaObjective(statistics, 1)

    def published(flat):
        left = objective.split(flat)[0]
        updates = left @ left.swapaxes(-1, -2)
        return ((y - (objective.base(updates) + updates) @ x) ** 2).sum() / (2 * 25)

    one, other = generator.standard_normal((2, objective.size))
    assert objective(one)[0] - objective(other)[0] == pytest.approx(
        published(one) - published(other), rel=1e-9
    )
    assert truth.base.shape == (4, 4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_alternating_closed_forms_never_rise_and_meet_lbfgs(symmetric):
    generator = np.random.default_rng(7)
    truth = draw_truth(generator, 6, 4, 1, symmetric)
    tasks = population(truth.maps) if symmetric else sample(generator, truth.maps, 500, 0.1)
    base, losses = alternate(tasks, 1, pooled_least_squares(tasks), 1500, symmetric)
    assert (np.diff(losses) <= 1e-12 * losses[0]).all()
    found = meta_least_squares(tasks, 1, generator, symmetric=symmetric)
    np.testing.assert_allclose(base, found.base, atol=1e-5 * np.abs(found.base).max())


def test_symmetric_alternation_needs_isotropic_inputs():
    _, _, statistics = raw(8, 4, 2, 30)
    with pytest.raises(ValueError, match="isotropic"):
        alternate(statistics, 1, np.zeros((4, 4)), 3)


@pytest.mark.parametrize("rank", [0, 5, 1.5])
def test_ranks_outside_the_map_are_refused(rank):
    with pytest.raises(ValueError, match=f"rank={rank}: allowed is a whole number from 1 to 4"):
        reduced_rank_regression(np.zeros((4, 4)), population(np.eye(4)), rank)
    with pytest.raises(ValueError, match=f"rank={rank}: allowed is a whole number from 1 to 4"):
        MetaObjective(population(np.stack([np.eye(4)] * 2)), rank)


def test_input_loss_is_the_sum_over_the_inputs():
    x, _, statistics = raw(9, 3, 1, 17)
    error = np.random.default_rng(0).standard_normal((3, 3))
    assert float(input_loss(error, statistics.task(0))) == pytest.approx(
        ((error @ x[0]) ** 2).sum(), rel=1e-12
    )

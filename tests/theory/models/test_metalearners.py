"""Theorem 6, closed forms against finite differences and against metapeft's engine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.models.engine import engine_gradient
from theory.models.metalearners import METHODS, outer_gradient, solution, spread_covariances
from theory.models.problems import draw_truth, population
from theory.models.solvers import pooled_least_squares

AWAY = st.floats(-12, -2).map(lambda power: 10.0**power)
RATES = st.one_of(
    st.floats(0.01, 1.99).filter(lambda eta: abs(eta - 1) > 1e-12),
    *(AWAY.map(place) for place in (lambda e: e, lambda e: 1 - e, lambda e: 1 + e, lambda e: 2 - e)),
)


@settings(max_examples=40, deadline=None)
@given(method=st.sampled_from(METHODS), rate=RATES, steps=st.integers(1, 10), seed=st.integers(0, 10**6))
def test_all_have_the_solution_of_standard_retraining(method, rate, steps, seed):
    maps = draw_truth(np.random.default_rng(seed), 6, 4, 1).maps
    unit = spread_covariances(np.random.default_rng(0), 4, 6, 0.0)
    found, expected = solution(method, maps, unit, rate, steps), pooled_least_squares(population(maps))
    assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("spread", "rate", "steps"), [(0.0, 0.1, 1), (0.0, 1.4, 4), (0.5, 0.5, 5), (0.5, 0.9, 2)]
)
def test_gradients_are_those_of_the_engine(method, spread, rate, steps):
    generator = np.random.default_rng(1)
    maps, covariances = draw_truth(generator, 5, 3, 1).maps, spread_covariances(generator, 3, 5, spread)
    base = generator.standard_normal((5, 5))
    found = engine_gradient(method, base, maps, covariances, rate, steps)
    expected = outer_gradient(method, base, maps, covariances, rate, steps)
    assert np.abs(found - expected).max() <= 1e-11 * np.abs(expected).max()


def adapted_loss(method, base, maps, covariances, rate, steps):
    """The outer loss itself, with the inner loop as it stands in the papers."""
    total = 0.0
    for target, sigma in zip(maps, covariances, strict=True):
        if method == "maml":
            moved = base
            for _ in range(steps):
                moved = moved - rate * (moved - target) @ sigma
        else:
            moved = (target @ sigma + rate * base) @ np.linalg.inv(sigma + rate * np.eye(len(sigma)))
        total += 0.5 * np.sum(((moved - target) @ sigma) * (moved - target))
    return total


@pytest.mark.parametrize("method", ["maml", "imaml"])
def test_gradients_are_the_derivatives_of_the_outer_loss(method):
    generator = np.random.default_rng(2)
    maps, covariances = draw_truth(generator, 4, 3, 1).maps, spread_covariances(generator, 3, 4, 0.5)
    base, direction = generator.standard_normal((2, 4, 4))
    ends = [
        adapted_loss(method, base + sign * 1e-4 * direction, maps, covariances, 0.4, 3) for sign in (1, -1)
    ]
    expected = float((outer_gradient(method, base, maps, covariances, 0.4, 3) * direction).sum())
    # a quadratic: only rounding is left
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(expected, rel=1e-8)


def test_unequal_covariances_move_the_solution_and_equal_ones_do_not():
    generator = np.random.default_rng(3)
    maps = draw_truth(generator, 6, 4, 1).maps
    for common in (True, False):
        covariances = np.broadcast_to(spread_covariances(generator, 1 if common else 4, 6, 0.5), maps.shape)
        expected = pooled_least_squares(population(maps, covariances))
        for method in METHODS:
            distance = np.linalg.norm(solution(method, maps, covariances, 0.2, 3) - expected)
            assert (distance < 1e-9 * np.linalg.norm(expected)) == common


@pytest.mark.parametrize("method", ["fomaml", "maml"])
def test_a_rate_of_one_leaves_every_start_stationary(method):
    maps = draw_truth(np.random.default_rng(4), 4, 3, 1).maps
    with pytest.raises(ValueError, match="choose a rate other than 1"):
        solution(method, maps, np.stack([np.eye(4)] * 3), 1.0, 2)


@pytest.mark.parametrize(
    ("method", "rate", "steps", "words"),
    [
        ("anil", 0.1, 1, "method must be one of"),
        ("maml", 0.0, 1, "rate=0.0: allowed is"),
        ("maml", 0.1, 0, "steps=0: allowed is"),
    ],
)
def test_bad_arguments_are_refused(method, rate, steps, words):
    with pytest.raises(ValueError, match=words):
        solution(method, np.zeros((2, 3, 3)), np.stack([np.eye(3)] * 2), rate, steps)

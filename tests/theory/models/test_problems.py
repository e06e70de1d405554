"""Settings, samples and their statistics."""

import numpy as np
import pytest

from theory.models.problems import LinearSetting, draw_truth, population, sample, square_root


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 11}, "k=11: allowed is a whole number from 1 to 10, the width"),
        ({"T": 0}, "T=0: allowed is a whole number of at least 1"),
        ({"n": -1}, "n=-1: allowed is a whole number"),
        ({"N": 2.5}, "N=2.5: allowed is a whole number"),
        ({"d": True}, "d=True: allowed is a whole number"),
        ({"sigma": -0.1}, "sigma=-0.1: allowed is a finite number of at least 0"),
        ({"sigma": float("nan")}, "sigma=nan: allowed is a finite number"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        LinearSetting(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"k": 3}, "k(T+1) = 12 > d = 10"),
        ({"T": 1}, "T = 1"),
        ({"T": 2}, "not unique"),
        ({"n": 5}, "n = 5 < d = 10"),
        ({"sigma": 0.0}, "sigma = 0"),
    ],
)
def test_settings_beyond_a_theorem_are_labelled(change, words):
    caveats = LinearSetting(**change).caveats()
    assert caveats == [] if words is None else any(words in caveat for caveat in caveats)


def test_ranks_that_the_methods_need():
    assert (LinearSetting().test_rank, LinearSetting().retraining_rank) == (1, 4)
    assert (LinearSetting(T=2, k=2).test_rank, LinearSetting(k=3).retraining_rank) == (6, 10)


def test_statistics_are_those_of_the_samples():
    """In one dimension less than the samples' own sums nothing is lost: E X^T of noise 0 is 0."""
    maps = np.random.default_rng(0).standard_normal((3, 4, 4))
    clean = sample(np.random.default_rng(1), maps, 50, sigma=0.0)
    noisy = sample(np.random.default_rng(1), maps, 50, sigma=0.5)
    x = np.random.default_rng(1).standard_normal((3, 4, 50))
    np.testing.assert_allclose(clean.xx, x @ x.swapaxes(-1, -2), rtol=1e-12)
    np.testing.assert_allclose(clean.yx, maps @ clean.xx, rtol=1e-12)
    generator = np.random.default_rng(1)
    generator.standard_normal((3, 4, 50))
    y = maps @ x + 0.5 * generator.standard_normal((3, 4, 50))
    np.testing.assert_allclose(noisy.yx, y @ x.swapaxes(-1, -2), rtol=1e-12)
    np.testing.assert_allclose(noisy.yy, y @ y.swapaxes(-1, -2), rtol=1e-12)


def test_samples_have_the_covariance_that_was_asked_for():
    covariance = np.diag([4.0, 1.0, 0.25])
    found = sample(np.random.default_rng(0), np.eye(3), 200_000, 0.0, covariance)
    # Standard error of a variance is sqrt(2 / 200000) = 0.3 % of it.
    np.testing.assert_allclose(found.xx / found.samples, covariance, atol=0.02 * 4)
    np.testing.assert_allclose(np.diag(found.xx / found.samples), np.diag(covariance), rtol=0.015)


def test_population_is_the_limit_of_samples():
    maps = np.random.default_rng(0).standard_normal((3, 3))
    limit, found = population(maps), sample(np.random.default_rng(1), maps, 400_000, 0.0)
    np.testing.assert_allclose(found.yx / found.samples, limit.yx, atol=0.02)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [(np.array([[1.0, 1.0], [0.0, 1.0]]), "symmetric"), (np.diag([1.0, -1.0]), "negative eigenvalue")],
)
def test_what_is_no_covariance_is_refused(matrix, words):
    with pytest.raises(ValueError, match=words):
        square_root(matrix)


def test_truth_is_nested_and_symmetric():
    truth = draw_truth(np.random.default_rng(0), 6, 4, 2, shape=(5,))
    assert truth.maps.shape == (5, 4, 6, 6)
    np.testing.assert_array_equal(truth.maps, truth.maps.swapaxes(-1, -2))
    assert np.linalg.matrix_rank(truth.updates).tolist() == [[2] * 4] * 5
    with pytest.raises(ValueError, match="allowed is a whole number from 1 to"):
        draw_truth(np.random.default_rng(0), 3, 2, 4)

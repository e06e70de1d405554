"""The published dynamics on statistics, against a naive implementation on samples, step by step."""

import numpy as np
import pytest

from theory.models.dynamics import fine_tune, meta_train, retrain
from theory.models.problems import Statistics
from theory.models.solvers import (
    input_loss,
    meta_least_squares,
    pooled_least_squares,
    reduced_rank_regression,
)

STEPS = 1000
CLOSE = 1e-10  # relative, after 1,000 steps of at most 1e-15 each


def problem(seed, d, tasks, count, k):
    """Raw samples of the model, their statistics, and starts."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal((d, d))
    left = generator.standard_normal((tasks, d, k))
    maps = (base + base.T) / 2 + left @ left.swapaxes(-1, -2)
    x = generator.standard_normal((tasks, d, count))
    y = maps @ x + 0.1 * generator.standard_normal(x.shape)
    turned = x.swapaxes(-1, -2)
    statistics = Statistics(x @ turned, y @ turned, y @ y.swapaxes(-1, -2), np.full(tasks, float(count)))
    return x, y, statistics, 0.1 * generator.standard_normal((tasks, d, k))


def same(found, expected):
    assert np.abs(found - expected).max() <= CLOSE * np.abs(expected).max()


@pytest.mark.parametrize(("d", "tasks", "count", "k"), [(5, 3, 40, 1), (8, 2, 100, 2), (10, 3, 30, 3)])
def test_meta_training_step_by_step(d, tasks, count, k):
    x, y, statistics, start = problem(0, d, tasks, count, k)
    base, factors = np.zeros((d, d)), start.copy()
    ours_base, ours_factors = base.copy(), start.copy()
    for _ in range(STEPS // 10):
        for _ in range(10):
            for t in range(tasks):
                residual = (base + factors[t] @ factors[t].T) @ x[t] - y[t]
                slope = residual @ x[t].T / count
                factors[t] = factors[t] - 0.003 * (slope + slope.T) @ factors[t]
        total = sum(((base + factors[t] @ factors[t].T) @ x[t] - y[t]) @ x[t].T for t in range(tasks))
        base = base - 0.03 * total / (count * tasks)
        ours_base, ours_factors = meta_train(statistics, ours_base, ours_factors, 1)
        same(ours_base, base)
        same(ours_factors, factors)


@pytest.mark.parametrize("frozen", [False, True])
def test_retraining_step_by_step(frozen):
    x, y, statistics, start = problem(1, 6, 3, 50, 1)
    updates = start @ start.swapaxes(-1, -2) * frozen
    base = ours = np.zeros((6, 6))
    for _ in range(STEPS):
        total = sum(((base + updates[t]) @ x[t] - y[t]) @ x[t].T for t in range(3))
        base = base - 0.03 * total / (50 * 3)
        ours = retrain(statistics, ours, updates, 1, 0.03)
        same(ours, base)


@pytest.mark.parametrize(("d", "rank", "count"), [(5, 1, 40), (10, 3, 100), (8, 2, 4)])
def test_fine_tuning_step_by_step(d, rank, count):
    x, y, statistics, _ = problem(2, d, 1, count, 1)
    generator = np.random.default_rng(3)
    base = generator.standard_normal((d, d)) / d
    left, right = 0.1 * generator.standard_normal((2, d, rank))
    curve = fine_tune(base, statistics.task(0), left, right, list(range(STEPS + 1)), 0.005)
    for step in range(STEPS + 1):
        same(curve.left[step], left)
        same(curve.right[step], right)
        slope = ((base + left @ right.T) @ x[0] - y[0]) @ x[0].T / count
        left, right = left - 0.005 * slope @ right, right - 0.005 * slope.T @ left


def test_padded_tasks_and_columns_change_nothing():
    _, _, statistics, start = problem(4, 6, 2, 60, 1)
    padded = Statistics(*(np.pad(part, ((0, 2), *(((0, 0),) * (part.ndim - 1)))) for part in statistics))
    wide = np.pad(start, ((0, 2), (0, 0), (0, 2)))
    base, factors = meta_train(statistics, np.zeros((6, 6)), start, 50)
    base_padded, factors_padded = meta_train(padded, np.zeros((6, 6)), wide, 50)
    same(base_padded, base)
    same(factors_padded[:2, :, :1], factors)
    assert not factors_padded[2:].any()
    assert not factors_padded[..., 1:].any()
    none = np.zeros((4, 6, 6))
    same(
        retrain(padded, np.zeros((6, 6)), none, 50, 0.03),
        retrain(statistics, np.zeros((6, 6)), none[:2], 50, 0.03),
    )


def test_a_batch_is_its_problems():
    parts = [problem(seed, 5, 3, 40, 1) for seed in (5, 6)]
    together = Statistics(*(np.stack(pair) for pair in zip(parts[0][2], parts[1][2], strict=True)))
    starts = np.stack([part[3] for part in parts])
    base, _ = meta_train(together, np.zeros((2, 5, 5)), starts, 30)
    for index, part in enumerate(parts):
        same(base[index], meta_train(part[2], np.zeros((5, 5)), part[3], 30)[0])


def test_exact_solvers_are_the_limits():
    """Each descent, run long enough, ends where its exact solver is."""
    _, _, statistics, start = problem(7, 4, 3, 200, 1)
    limit = retrain(statistics, np.zeros((4, 4)), np.zeros((3, 4, 4)), 2000, 0.05)
    np.testing.assert_allclose(limit, pooled_least_squares(statistics), rtol=1e-8, atol=1e-10)
    base, _ = meta_train(statistics, np.zeros((4, 4)), start, 3000, inner_rate=0.02, rate=0.3)
    exact = meta_least_squares(statistics, 1, np.random.default_rng(0)).base
    np.testing.assert_allclose(base, exact, atol=1e-5 * np.abs(exact).max())  # its slowest mode is flat
    task = statistics.task(0)
    curve = fine_tune(
        np.zeros((4, 4)), task, *(0.1 * np.ones((2, 4, 1)) * [[[1], [2], [3], [4]]]), [20000], 0.005
    )
    found, best = curve.left[-1] @ curve.right[-1].T, reduced_rank_regression(np.zeros((4, 4)), task, 1)
    assert float(input_loss(found - best, task)) < 1e-12 * float(input_loss(best, task))


@pytest.mark.parametrize("record", [[], [3, 2], [-1, 4], [1, 1]])
def test_records_that_do_not_rise_are_refused(record):
    _, _, statistics, start = problem(8, 3, 1, 20, 1)
    with pytest.raises(ValueError, match="rising step numbers"):
        fine_tune(np.zeros((3, 3)), statistics.task(0), start[0], start[0], record, 0.01)

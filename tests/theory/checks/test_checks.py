"""Each theorem check passes on a few instances, and fails when it is told something false."""

import math

import numpy as np
import pytest

from theory.checks import beyond, metalearners, minima, rates, residual, surface
from theory.checks.check import Check
from theory.checks.table import all_checks


def passes(found):
    return all(check.passed for check in found)


def run(check, **arguments):
    return check(np.random.default_rng(0), **arguments)


RIGHT = [
    (residual.rank, {"instances": 20}),
    (residual.inertia, {"instances": 20}),
    (residual.best_loss, {"instances": 10}),
    (residual.semidefinite, {"instances": 20}),
    (minima.ranks, {"instances": 15}),
    (minima.unique, {"instances": 14}),
    (minima.unique_asymmetric, {"instances": 7}),
    (surface.family, {"instances": 10}),
    (surface.saddles, {"instances": 6}),
    (metalearners.same_solution, {"instances": 20}),
    (metalearners.engine_solution, {"instances": 3}),
    (metalearners.common_covariance, {"instances": 10}),
    (metalearners.task_covariances, {"instances": 10}),
    (rates.floor, {"draws": 300}),
    (rates.retraining_plateau, {}),
    (beyond.asymmetric_residual, {}),
    (beyond.asymmetric_pair, {"instances": 7}),
    (beyond.indifferent_selection, {"instances": 1}),
    (beyond.seed_floor, {}),
    (beyond.generated, {"instances": 5}),
]
WRONG = [
    (residual.rank, {"instances": 20, "claimed": lambda k, T, d: min(k * (T + 1), d) - 1}),
    (residual.rank, {"instances": 20, "claimed": lambda k, T, d: min(k * (T + 1) + 1, d)}),
    (residual.inertia, {"instances": 5, "claimed": lambda k, T: (k * T, k)}),
    (residual.best_loss, {"instances": 5, "constant": 1.0}),
    (
        residual.semidefinite,
        {"instances": 5, "training": 0.0},
    ),  # without training updates the residual is PSD
    (minima.ranks, {"instances": 6, "tasks": (1, 2), "claimed": lambda k: (2 * k - 1, 3 * k)}),
    (minima.ranks, {"instances": 6, "tasks": (1, 2), "claimed": lambda k: (2 * k, 3 * k - 1)}),
    (minima.unique, {"instances": 2, "tasks": (2,)}),
    (minima.unique, {"instances": 2, "extra_rank": 1}),
    (minima.unique, {"instances": 2, "tasks": (2,), "symmetric": False}),
    (surface.family, {"instances": 5, "q": lambda p: p}),
    (surface.saddles, {"instances": 5, "ceiling": -0.5}),
    (rates.population_form, {"draws": 200, "n": 20}),
    (metalearners.same_solution, {"instances": 10, "spread": 0.3}),
    (metalearners.engine_solution, {"instances": 3, "spread": 0.3}),
    (rates.floor, {"draws": 300, "count": lambda r, d: 2.0 * r * d}),
    (rates.retraining_plateau, {"rank": 4}),
    (beyond.asymmetric_pair, {"instances": 4, "tasks": 3}),
    (beyond.indifferent_selection, {"instances": 1, "dropped": 2}),
    (beyond.seed_floor, {"factor": 2.0}),
    (beyond.generated, {"instances": 5, "fewer": 1}),
    (beyond.generated, {"instances": 5, "others": 60}),
    (beyond.asymmetric_residual, {"instances": 20, "claimed": lambda k, T, d: min(k * (T + 1), d) - 1}),
    (metalearners.common_covariance, {"instances": 5, "common": False}),
    (metalearners.task_covariances, {"instances": 5, "spread": 0.0}),
]


def label(case):
    check, arguments = case
    return f"{check.__name__}-{'-'.join(arguments)}"


@pytest.mark.parametrize("case", RIGHT, ids=label)
def test_a_true_statement_passes(case):
    found = run(case[0], **case[1])
    assert found
    assert passes(found), [(check.statement, check.measured) for check in found if not check.passed]
    assert all(check.instances > 0 for check in found)


@pytest.mark.parametrize("case", WRONG, ids=label)
def test_a_false_statement_fails(case):
    assert not passes(run(case[0], **case[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        (rates.retraining_rate, {"draws": 6, "claimed": -2.0}),
        (rates.retraining_rate, {"draws": 6, "factor": 2.0}),
        (beyond.selected_ranks, {"margin": 30.0}),
        (surface.spurious, {"tasks": 2, "attempts": 200}),
    ],
    ids=label,
)
def test_a_false_statement_fails_slowly(case):
    assert not passes(run(case[0], **case[1]))


@pytest.mark.slow
def test_a_spurious_minimum_is_found_and_left():
    found = run(surface.spurious)
    assert passes(found)
    spectrum = found[0].detail["spectrum"]
    assert len(spectrum) == 15
    assert min(spectrum) > 0


def test_nan_never_passes():
    assert not Check(1, "", 1, math.nan, 1.0).passed
    assert not Check(1, "", 1, math.nan, 1.0, ">=").passed


def test_nan_in_any_instance_never_passes(monkeypatch):
    """The worst of the instances is NaN then, whichever came first."""
    engine = metalearners.solution
    calls = []

    def second_is_nan(*arguments):
        calls.append(0)
        return np.full_like(engine(*arguments), np.nan) if len(calls) == 2 else engine(*arguments)

    monkeypatch.setattr(metalearners, "solution", second_is_nan)
    assert not passes(run(metalearners.engine_solution, instances=4))
    monkeypatch.setattr(minima, "_distance", lambda found, true: next(values))
    values = iter([0.0, 0.0, math.nan, 0.0, 0.0, 0.0])
    assert not all(check.passed for check in run(minima.unique, instances=3))


SEEDED = (
    residual.rank, residual.inertia, residual.best_loss, residual.semidefinite, surface.family, surface.saddles,
    metalearners.same_solution, metalearners.common_covariance, beyond.asymmetric_residual, beyond.generated,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("check", SEEDED, ids=lambda check: check.__name__)
def test_true_statements_pass_at_every_seed(check):
    """As `verify --seed` runs them; no bound is so close that the seed decides."""
    for seed in range(1, 7):
        found = check(np.random.default_rng([seed, 5]))
        assert passes(found), (seed, [(c.statement, c.measured) for c in found if not c.passed])


def test_all_theorems_are_covered():
    modules = {check.__module__.rsplit(".", 1)[-1] for check in all_checks()}
    assert modules == {"residual", "minima", "surface", "metalearners", "rates", "beyond"}

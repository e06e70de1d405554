"""Nothing of the table of inner solvers is left out of the grids of the tests."""

from __future__ import annotations

from metapeft.inner.solver import Solver
from metapeft.inner.table import registry
from tests.inner.solvers import PAIRS, STEPPING
from tests.inner.test_closed_form import CLOSED
from tests.inner.test_constraints import MAPS

#: what solvers of one's own derive from
BASES = {"Solver", "Descent"}
#: what reads learned tensors of its own, see `test_rate_net`
LEARNED = {"RateNet"}
#: functions that `test_closed_form`, `test_softmax_regression` and `test_optimizers` compare with SciPy and torch
FUNCTIONS = {"solve", "ridge", "logistic", "softmax_regression"}
#: of the outer variables, see `tests/training/test_projections.py`
PROJECTIONS = {"Box", "Simplex", "Ball"}


def test_every_solver_is_in_a_grid() -> None:
    assert set(PAIRS) == set(registry.names)
    for name, pairs in PAIRS.items():
        assert {type(solver) for solver, *_ in pairs} == {registry.resolve(name)}
    things = {name: registry.attribute(name) for name in registry}
    classes = {
        name for name, thing in things.items() if isinstance(thing, type) and issubclass(thing, Solver)
    }
    assert set(STEPPING) | set(CLOSED) == classes - BASES - LEARNED
    for name, solvers in STEPPING.items():
        assert {type(solver) for solver in solvers} == {things[name]}
    assert {name: made for name, (made, *_) in CLOSED.items()} == {name: things[name] for name in CLOSED}
    of_maps = {function.__name__ for pair in MAPS.values() for function in pair[:2]}
    assert of_maps | FUNCTIONS | PROJECTIONS == set(things) - classes

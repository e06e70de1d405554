"""What every engine refuses: idle outer variables, numbers that are not finite, bad arguments."""

from __future__ import annotations

import warnings

import pytest
import torch

import metapeft as mp
from metapeft.hypergradients import (
    CG,
    Forward,
    MultiStep,
    NotConverged,
    Recompute,
    Truncated,
    hypergradient,
)
from metapeft.hypergradients.table import registry as engines
from metapeft.inner import SGD

NAMES = [name for name in engines.names if name != "direct"]
REACH_ALL = ["unroll", MultiStep(), Recompute(), Recompute("sqrt"), Truncated(9), Forward(), Forward(chunk=2)]


@pytest.fixture(autouse=True)
def _few_steps_do_not_converge():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        yield


@pytest.mark.parametrize("method", engines.names)
def test_an_outer_variable_that_no_loss_reaches_is_refused_by_name(method):
    u = {"idle": torch.ones(2), "c": torch.tensor(1.0)}
    solver = None if method == "direct" else SGD(1, 0.5)
    inner = None if method == "direct" else lambda u, w: (w["x"] - u["c"]).square()
    with pytest.raises(ValueError, match=r"u\['idle'\]"):
        hypergradient(
            lambda u, w: (w["x"] * u["c"]).square(), inner, u, lambda u: {"x": u["c"] * 2}, solver, method
        )
    with pytest.raises(ValueError, match=r"u\['idle'\]"):
        hypergradient(
            lambda u, w: (w["x"] * u["c"]).square(),
            inner,
            u,
            lambda u: {"x": u["c"] * 2},
            None if method == "direct" else SGD(0, 0.5),
            method,
        )


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("level", ["inner", "outer", "both"])
def test_nan_in_an_objective_is_a_numerical_error(method, level):
    bad = torch.tensor(float("nan"))
    u = {"c": torch.tensor(1.0)}
    start = lambda u: {"x": u["c"] * 2}  # noqa: E731

    def inner(u, w):
        return (w["x"] - u["c"]).square() + (bad if level != "outer" else 0)

    def outer(u, w):
        return (w["x"] * u["c"]).square() + (bad if level != "inner" else 0)

    with pytest.raises(mp.NumericalError, match="objective is nan"):
        hypergradient(outer, inner, u, start, SGD(1, 0.5), method)


@pytest.mark.parametrize(
    "method", ["unroll", "recompute", "first-order", "forward", "cg", "exact", "neumann"]
)
def test_divergence_is_a_numerical_error_that_says_where(method):
    u = {"c": torch.tensor(1.0)}
    with pytest.raises(mp.NumericalError, match=r"inner objective is (inf|nan) at inner step"):
        hypergradient(
            lambda u, w: w["x"].square() * u["c"],
            lambda u, w: (w["x"] - u["c"]) ** 4,
            u, {"x": torch.tensor(30.0)}, SGD(9, 0.5), method,
        )  # fmt: skip


def test_the_task_that_is_not_finite_is_named():
    start = {"x": torch.tensor([1.0, 1.0, 1.0])}
    scale = torch.tensor([1.0, float("inf"), 1.0])
    with pytest.raises(mp.NumericalError, match=r"task\(s\) \[1\]"):
        hypergradient(
            lambda u, w: (w["x"] * u["c"]) * scale,
            lambda u, w: (w["x"] - u["c"]).square(),
            {"c": torch.tensor(1.0)}, start, SGD(1, 0.1), task_axis=True,
        )  # fmt: skip


def good():
    return {
        "outer": lambda u, w: (w["x"] * u["c"]).sum(),
        "inner": lambda u, w: (w["x"] - u["c"]).square().sum(),
        "u": {"c": torch.tensor(1.0)},
        "w0": {"x": torch.zeros(2)},
        "solver": SGD(1, 0.1),
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"u": {}}, "non-empty dict"),
        ({"u": {"c": 1.0}}, "floating-point"),
        ({"u": {"c": torch.tensor(1)}}, "floating-point"),
        ({"w0": {}}, "non-empty"),
        ({"w0": {"x": torch.tensor([1, 2])}}, "floating-point"),
        ({"w0": lambda u: None}, "non-empty"),
        ({"inner": None}, "inner is None"),
        ({"solver": None}, "solver is None"),
        ({"solver": 3}, "inner solver"),
        ({"solver": lambda u: u}, "1 arguments"),
        ({"method": "unrol"}, "did you mean 'unroll'"),
        ({"method": CG}, r"write CG\(\)"),
        ({"method": 3}, "name of an engine"),
        ({"data": [1, 2]}, "pair"),
        ({"data": (1,)}, "pair"),
        ({"task_axis": True}, r"wants \(T,\)"),
        ({"inner": lambda u, w: w["x"] * u["c"]}, "shape"),
        ({"outer": lambda u, w: w["x"] * u["c"]}, "shape"),
        ({"outer": lambda u, w: 3.0}, "return a tensor"),
        ({"inner": lambda u, w: u["c"] * 2}, "does not depend on the inner variables"),
        ({"has_aux": True}, "pair"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        hypergradient(**{**good(), **change})


def test_a_start_without_the_task_axis_is_refused():
    with pytest.raises(ValueError, match="leading axis"):
        hypergradient(
            lambda u, w: (w["x"] * u["c"]).expand(3, 2).sum(1),
            lambda u, w: (w["x"] - u["c"]).square().expand(3, 2).sum(1),
            {"c": torch.tensor(1.0)}, {"x": torch.zeros(1, 2)}, SGD(1, 0.1), task_axis=True,
        )  # fmt: skip

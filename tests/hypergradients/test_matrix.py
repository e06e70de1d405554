"""Every engine of the table, as its name makes it, against its formula on one quadratic problem.

The outer objective is `F + f`, of `quadratics`, so that every outer variable is read directly, through w, or both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metapeft.hypergradients import NotConverged, hypergradient
from metapeft.hypergradients.table import registry
from metapeft.inner import SGD
from tests.hypergradients.quadratics import KEYS, Quadratic, assert_close, closed_form, quadratic

Tensors = dict[str, Tensor]


def both(q: Quadratic, u: Tensors, w: Tensors) -> Tensor:
    return q.outer(u, w) + q.inner(u, w)


def unrolled(q: Quadratic, steps: int) -> Tensors:
    """Of the K-step iterate in closed form."""
    return closed_form(lambda u: both(q, u, {"w": q.iterate(u, steps)}), q.u)


def last_five(q: Quadratic, steps: int) -> Tensors:
    """Of the iterate five steps before the end, taken as a constant, and the steps from there."""
    before = q.iterate(q.u, steps - 5).detach()

    def value(u: Tensors) -> Tensor:
        w = before
        for _ in range(5):
            w = w - q.lr * (q.hessian(u) @ w - q.B @ u["c"])
        return both(q, u, {"w": w})

    return closed_form(value, q.u)


def slope(q: Quadratic, w: Tensor) -> Tensor:
    """The gradient of `F + f` in w."""
    return w - q.y + q.u["d"] + q.hessian(q.u) @ w - q.B @ q.u["c"]


def at_the_end(q: Quadratic, steps: int, x: Callable[[Tensor], Tensor]) -> Tensors:
    """Partial derivatives at w_K, less `x(g)' d(grad f)/du`, with g the gradient of `F + f` in w."""
    w, u = q.iterate(q.u, steps), q.u
    adjoint = x(slope(q, w))
    return {"c": -q.B.T @ w + q.B.T @ adjoint, "s": w @ w / 2 - w @ adjoint, "d": w + u["d"]}


def solved(q: Quadratic, steps: int) -> Tensors:
    return at_the_end(q, steps, lambda g: torch.linalg.solve(q.hessian(q.u), g))


def twenty_terms(q: Quadratic, steps: int) -> Tensors:
    """`x = lr sum_{j<20} (I - lr H)^j g` at a rate of 0.1."""

    def partial(g: Tensor) -> Tensor:
        factor = torch.eye(len(g), dtype=g.dtype) - 0.1 * q.hessian(q.u)
        return sum((0.1 * torch.linalg.matrix_power(factor, j) @ g for j in range(20)), torch.zeros_like(g))

    return at_the_end(q, steps, partial)


def constant_gradients(q: Quadratic, steps: int) -> Tensors:
    w = q.iterate(q.u, steps)
    return {**at_the_end(q, steps, torch.zeros_like), "t": q.P.T @ slope(q, w)}


def displacement(q: Quadratic, steps: int) -> Tensors:
    return {"t": q.P.T @ (q.P @ q.u["t"] - q.iterate(q.u, steps))}


# name -> outer variables that it reaches, inner steps, the formula
GRID: dict[str, tuple[str, int, Callable[[Quadratic, int], Tensors]]] = {
    "unroll": ("csdt", 7, unrolled),
    "recompute": ("csdt", 7, unrolled),
    "multi-step": ("csdt", 7, unrolled),  # the last step alone counts, unless said
    "forward": ("csdt", 7, unrolled),
    "truncated": ("csd", 7, last_five),
    "first-order": ("dt", 7, constant_gradients),
    "envelope": ("csd", 7, lambda q, steps: at_the_end(q, steps, torch.zeros_like)),
    "direct": ("csdt", 0, unrolled),
    "finite-difference": ("csdt", 1, unrolled),  # differences of a quadratic function have no error
    "autolora": ("csd", 1, lambda q, steps: at_the_end(q, steps, lambda g: g)),  # a rate of 1, at w_1
    "neumann": ("csd", 7, twenty_terms),
    "cg": ("csd", 7, solved),
    "exact": ("csd", 7, solved),
    "fixed-point": ("csd", 7, solved),  # of gradient steps
    "soba": ("csd", 0, lambda q, steps: at_the_end(q, steps, torch.zeros_like)),  # at first, see test_soba
    "reptile": ("t", 7, displacement),
}


def test_every_engine_is_in_the_grid() -> None:
    assert set(GRID) == set(registry.names)
    assert {key for groups, *_ in GRID.values() for key in groups} == set(KEYS)


def found(name: str, q: Quadratic) -> Any:
    """What the engine gives for the outer variables that it reaches; the others are constants."""
    groups, steps, _ = GRID[name]
    u = {key: q.u[key] for key in groups}
    rest = {key: value for key, value in q.u.items() if key not in groups}
    start: Any = (lambda v: q.start({**rest, **v})) if "t" in groups else q.start(q.u)
    inner = None if name == "direct" else lambda v, w: q.inner({**rest, **v}, w)
    solver = None if name == "direct" else SGD(steps, q.lr)
    return hypergradient(lambda v, w: both(q, {**rest, **v}, w), inner, u, start, solver, name)


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", GRID)
def test_the_formula(name: str, seed: int) -> None:
    q = quadratic(5, 10.0, seed)
    groups, steps, formula = GRID[name]
    result = found(name, q)
    expected = formula(q, steps)
    # cg ends at a residual of 1e-10; differences lose 1e-16 over their step of about 1e-2
    size = {"cg": 1e-8, "fixed-point": 1e-8, "finite-difference": 1e-10, "autolora": 1e-10}.get(name, 1e-11)
    assert_close(result.grads, {key: expected[key] for key in groups}, size)
    w = {"w": q.iterate(q.u, steps)}
    assert_close(result.w, w, 1e-12)
    torch.testing.assert_close(result.value, both(q, q.u, w), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")
@pytest.mark.parametrize("name", GRID)
def test_engines_work_where_gradients_are_off(name: str) -> None:
    """And give the same bits there."""
    q = quadratic(5, 10.0, seed=0)
    expected = found(name, q)
    with torch.no_grad():
        result = found(name, q)
    assert torch.equal(result.value, expected.value)
    assert set(result.grads) == set(expected.grads)
    for key, value in expected.grads.items():
        assert torch.equal(result.grads[key], value), key


def test_an_unfinished_solve_is_said() -> None:
    for name in ("cg", "neumann", "exact", "fixed-point"):
        with pytest.warns(NotConverged):
            found(name, quadratic(5, 10.0, seed=0))

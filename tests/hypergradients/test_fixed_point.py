"""Implicit derivatives of fixed points by closed forms: maps that are not symmetric, proximal and projected steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metapeft import inner as mi
from metapeft.hypergradients import FixedPointImplicit, NotConverged, hypergradient
from metapeft.hypergradients.transposed import conjugate_normal, gmres, neumann
from tests.inner.problems import curved

LINEAR = ("gmres", "normal", "neumann")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contraction(size: int, seed: int, radius: float = 0.7) -> Tensor:
    """A matrix that is far from symmetric, of that spectral radius."""
    matrix = randn(size, size, seed=seed).triu() + 0.2 * randn(size, size, seed=seed + 1)
    return matrix * (radius / torch.linalg.eigvals(matrix).abs().max())


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("size", [1, 4, 9])
def test_an_affine_map(linear: Any, size: int) -> None:
    """`w = A w + B u + c`: `dF/du = B^T (I - A)^-T dF/dw`, in two variables that share the system."""
    a, b, g = contraction(size, seed=size), randn(size, 3, seed=7), randn(size, seed=8)
    cut = size // 2

    def step(u: Any, w: Any) -> Any:
        whole = torch.cat([w["x"], w["y"]])
        moved = a @ whole + b @ u["c"] + u["d"].exp()
        return {"x": moved[:cut], "y": moved[cut:]}

    def outer(u: Any, w: Any) -> Tensor:
        return g @ torch.cat([w["x"], w["y"]]) + u["c"].square().sum()

    u = {"c": randn(3, seed=9), "d": torch.tensor(0.3, dtype=torch.float64)}
    start = {"x": torch.zeros(cut, dtype=torch.float64), "y": torch.zeros(size - cut, dtype=torch.float64)}
    engine = FixedPointImplicit(linear, iterations=400)
    found = hypergradient(outer, None, u, start, mi.FixedPoint(step, steps=400), engine)
    q = torch.linalg.solve((torch.eye(size, dtype=torch.float64) - a).T, g)
    torch.testing.assert_close(found.grads["c"], b.T @ q + 2 * u["c"], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.grads["d"], q.sum() * u["d"].exp(), rtol=1e-8, atol=1e-10)
    assert found.residual is not None
    assert found.residual < 1e-9
    torch.testing.assert_close(torch.cat(list(found.log["solution"].values())), q, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("linear", LINEAR)
def test_tasks_have_systems_of_their_own(linear: Any) -> None:
    """Of a nonlinear map, against one task at a time, and against unrolling it."""
    a = torch.stack([contraction(4, seed=s, radius=r) for s, r in ((1, 0.2), (2, 0.8), (3, 0.5))])

    def solver(matrices: Tensor) -> mi.FixedPoint:
        def step(u: Any, w: Any) -> Any:
            return {"x": torch.tanh(torch.einsum("tij,tj->ti", matrices, w["x"]) + u["c"])}

        return mi.FixedPoint(step, steps=300)

    def outer(u: Any, w: Any) -> Tensor:
        return (w["x"] - u["c"]).square().sum(1)

    u, engine = {"c": randn(4, seed=5)}, FixedPointImplicit(linear, iterations=300)
    start = torch.zeros(3, 4, dtype=torch.float64)
    found = hypergradient(outer, None, u, {"x": start}, solver(a), engine, task_axis=True)
    alone = [
        hypergradient(outer, None, u, {"x": start[:1]}, solver(a[t : t + 1]), engine, task_axis=True).grads[
            "c"
        ]
        for t in range(3)
    ]
    torch.testing.assert_close(found.grads["c"], torch.stack(alone).mean(0), rtol=1e-8, atol=1e-11)
    unrolled = hypergradient(outer, None, u, {"x": start}, solver(a), "unroll", task_axis=True)
    torch.testing.assert_close(found.grads["c"], unrolled.grads["c"], rtol=1e-8, atol=1e-11)
    assert found.residual is not None
    assert found.residual.shape == (3,)


def lasso() -> tuple[Any, Any, Any, Tensor, Tensor]:
    x, y = randn(30, 8, seed=1), randn(30, seed=2)
    lr = float(1 / torch.linalg.matrix_norm(x.T @ x / 30, 2))

    def soft(u: Any, w: Any, rate: Any) -> Any:
        return {n: v.sign() * (v.abs() - rate * u["penalty"]).clamp_min(0) for n, v in w.items()}

    def inner(u: Any, w: Any) -> Tensor:
        return (x @ w["w"] - y).square().mean() / 2

    return inner, mi.Proximal(3000, soft, lr), {"penalty": torch.tensor(0.08, dtype=torch.float64)}, x, y


@pytest.mark.parametrize("linear", LINEAR)
def test_the_lasso(linear: Any) -> None:
    """On its support S: `dw_S/dpenalty = -(X_S^T X_S / n)^-1 sign(w_S)`; elsewhere 0."""
    inner, solver, u, x, _ = lasso()
    c = randn(8, seed=3)
    engine = FixedPointImplicit(linear, iterations=3000)
    found = hypergradient(
        lambda u, w: c @ w["w"], inner, u, {"w": torch.zeros(8, dtype=torch.float64)}, solver, engine
    )
    w = found.w["w"]
    support = w != 0
    assert 0 < int(support.sum()) < 8
    gram = x[:, support].T @ x[:, support] / 30
    expected = -c[support] @ torch.linalg.solve(gram, w[support].sign())
    torch.testing.assert_close(found.grads["penalty"], expected, rtol=1e-7, atol=1e-10)


def test_a_projection() -> None:
    """`min (x - c)^2` on `x <= b`: at the bound x follows b, elsewhere c."""

    def onto(u: Any, w: Any) -> Any:
        return {"x": torch.minimum(w["x"], u["b"])}

    u = {
        "b": torch.tensor([1.0, 9.0], dtype=torch.float64),
        "c": torch.tensor([3.0, 3.0], dtype=torch.float64),
    }
    found = hypergradient(
        lambda u, w: (w["x"] * torch.tensor([2.0, 5.0], dtype=torch.float64)).sum(),
        lambda u, w: (w["x"] - u["c"]).square().sum() / 2,
        u, {"x": torch.zeros(2, dtype=torch.float64)}, mi.Projected(200, onto, 0.3), "fixed-point",
    )  # fmt: skip
    torch.testing.assert_close(found.grads["b"], torch.tensor([2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found.grads["c"], torch.tensor([0.0, 5.0], dtype=torch.float64))


def test_of_gradient_steps_it_is_the_implicit_formula() -> None:
    """With a proximal term, whose anchor makes the start reachable: iMAML's own gradient."""
    inner, outer, u, start = curved(seed=1)
    moving = {**u, "shift": torch.tensor(0.3, dtype=torch.float64)}

    def w0(u: Any) -> Any:
        return {name: value + u["shift"] for name, value in start.items()}

    solver = mi.SGD(2000, 0.05, proximal=2.0)
    found = hypergradient(outer, inner, moving, w0, solver, FixedPointImplicit(iterations=100))
    expected = hypergradient(outer, inner, moving, w0, solver, "exact")
    for name, value in expected.grads.items():
        torch.testing.assert_close(found.grads[name], value, rtol=1e-6, atol=1e-9)


def test_what_is_not_solved_is_said() -> None:
    a = contraction(6, seed=4, radius=0.95)
    solver = mi.FixedPoint(lambda u, w: {"x": a @ w["x"] + u["c"]}, steps=2000)
    u, start = {"c": randn(6, seed=1)}, {"x": torch.zeros(6, dtype=torch.float64)}

    def outer(u: Any, w: Any) -> Tensor:
        return w["x"].sum()

    with pytest.warns(NotConverged, match="relative residual"):
        hypergradient(outer, None, u, start, solver, FixedPointImplicit("gmres", iterations=2))
    with pytest.warns(NotConverged, match="not come to rest"):
        hypergradient(outer, None, u, start, solver.with_steps(2), "fixed-point")
    wild = mi.FixedPoint(lambda u, w: {"x": u["c"] - 3 * (w["x"] - w["x"].detach())}, steps=1)
    with pytest.raises(ArithmeticError, match="gains nothing"):
        hypergradient(outer, None, u, start, wild, FixedPointImplicit("neumann", iterations=9))
    still = mi.FixedPoint(lambda u, w: {"x": w["x"] + 0 * u["c"]}, steps=1)
    with pytest.raises(ArithmeticError, match="not a function of u"):
        hypergradient(outer, None, u, start, still, "fixed-point")
    with pytest.raises(ValueError, match="keeps velocity"):
        hypergradient(
            outer, lambda u, w: (w["x"] - u["c"]).square().sum(), u, start, mi.Momentum(3, 0.1), "fixed-point"
        )
    for wrong in ({"linear": "lu"}, {"iterations": 0}, {"tolerance": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FixedPointImplicit(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 5, 12])
def test_the_linear_solvers_by_themselves(size: int) -> None:
    """Systems of several tasks, one of them already solved (g = 0), one whose matrix is the identity."""
    matrices = torch.stack(
        [torch.eye(size, dtype=torch.float64) - contraction(size, seed=s) for s in range(3)]
    )
    matrices[1] = torch.eye(size, dtype=torch.float64)
    g = randn(3, size, seed=5)
    g[2] = 0
    expected = torch.linalg.solve(matrices, g.unsqueeze(2))[..., 0]

    def product(v: Tensor) -> Tensor:
        return torch.einsum("tij,tj->ti", matrices, v)

    def transposed(v: Tensor) -> Tensor:
        return torch.einsum("tji,tj->ti", matrices, v)

    for x, _ in (
        gmres(product, g, 3 * size, 1e-12),
        conjugate_normal(product, transposed, g, 50 * size, 1e-12),
        neumann(lambda v: v - product(v), g, 500, 1e-13),
    ):
        torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-9)

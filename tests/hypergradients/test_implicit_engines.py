"""CG, Neumann and exact against the implicit-function formula, and where they have to refuse."""

from __future__ import annotations

import warnings

import pytest
import torch

from metapeft.hypergradients import CG, Exact, Neumann, NotConverged, hypergradient
from metapeft.inner import SGD
from tests.hypergradients.quadratics import assert_close, quadratic


def formula(q, w, damping=0.0, solve=None):
    """Direct derivative minus `g' (H + damping I)^-1 d(grad f)/du` at the point w, by hand."""
    H, u = q.hessian(q.u), q.u
    g = w - q.y + u["d"]
    x = (
        torch.linalg.solve(H + damping * torch.eye(len(H), dtype=H.dtype), g)
        if solve is None
        else solve(H, g)
    )
    return {"c": q.B.T @ x, "s": -(x @ w), "d": w + u["d"]}, g


def without_start(q):
    return {name: q.u[name] for name in ("c", "s", "d")}, {"w": q.P @ q.u["t"]}


def error_bound(q, H, residual, g, w):
    """How far q' M may be off when ||g - H x|| = residual ||g||: ||M|| ||H^-1|| residual ||g||."""
    inverse = 1 / torch.linalg.eigvalsh(H)[0].abs()
    return {
        "c": q.B.norm() * inverse * residual * g.norm(),
        "s": w.norm() * inverse * residual * g.norm(),
        "d": 0.0,
    }


@pytest.mark.parametrize("damping", [0.0, 1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("dim", [1, 3, 20, 50])
@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")
def test_cg_and_exact_equal_the_formula_within_their_residual(dim, condition, damping):
    q = quadratic(dim, condition, seed=dim)
    u, start = without_start(q)
    for engine in (CG(iterations=4 * dim + 50, damping=damping), Exact(damping=damping)):
        found = hypergradient(q.outer, q.inner, u, start, SGD(20, q.lr), engine)
        expected, g = formula(q, found.w["w"], damping)
        H = q.hessian(q.u) + damping * torch.eye(dim, dtype=torch.float64)
        assert found.residual.shape == ()
        assert found.residual <= 1e-9
        bound = error_bound(q, H, found.residual, g, found.w["w"])
        for name, value in expected.items():
            rounding = 1e-12 * condition * value.norm()
            assert (found.grads[name] - value).norm() <= 2 * bound[name] + rounding


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")
@pytest.mark.parametrize("iterations", [0, 1, 3, 6])
def test_an_unfinished_cg_reports_the_residual_that_it_has(iterations):
    q = quadratic(20, 100.0, seed=4)
    u, start = without_start(q)
    found = hypergradient(q.outer, q.inner, u, start, SGD(5, q.lr), CG(iterations=iterations))
    x = found.log["solution"]["w"]
    g = found.w["w"] - q.y + q.u["d"]
    torch.testing.assert_close(found.residual, (g - q.hessian(q.u) @ x).norm() / g.norm(), rtol=1e-9, atol=0)
    expected, _ = formula(q, found.w["w"], solve=lambda H, g: x)
    assert_close(found.grads, expected, 1e-12)
    krylov = torch.stack(
        [torch.linalg.matrix_power(q.hessian(q.u), j) @ g for j in range(iterations)] or [0 * g], dim=1
    )
    weights = torch.linalg.lstsq(krylov.T @ q.hessian(q.u) @ krylov, krylov.T @ g, driver="gelsd").solution
    best = krylov @ weights  # the minimiser of 1/2 x'Hx - g'x over the Krylov space: what CG is
    torch.testing.assert_close(x, best, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")
@pytest.mark.parametrize("terms", [0, 1, 2, 10, 100])
@pytest.mark.parametrize("lr", [0.01, 0.5, 1.2])
def test_neumann_is_its_partial_sum(terms, lr):
    q = quadratic(6, 10.0, seed=6)
    u, start = without_start(q)
    H = q.hessian(q.u)
    step = torch.eye(6, dtype=torch.float64) - lr * H
    partial = lr * sum((torch.linalg.matrix_power(step, j) for j in range(terms)), torch.zeros_like(H))
    found = hypergradient(q.outer, q.inner, u, start, SGD(3, q.lr), Neumann(terms, lr))
    expected, g = formula(q, found.w["w"], solve=lambda H, g: partial @ g)
    assert_close(found.grads, expected, 1e-11)
    residual = (g - H @ partial @ g).norm() / g.norm()
    torch.testing.assert_close(found.residual, residual, rtol=1e-9, atol=1e-13)


def test_at_a_converged_point_the_formula_is_the_derivative_of_the_solution():
    q = quadratic(5, 3.0, seed=7)
    u, start = without_start(q)
    unrolled = hypergradient(q.outer, q.inner, u, start, SGD(400, q.lr), "unroll")
    for method in ("exact", CG(50), Neumann(400, 0.9)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # converged: nothing to say
            found = hypergradient(q.outer, q.inner, u, start, SGD(400, q.lr), method)
        assert_close(found.grads, unrolled.grads, 1e-9)


@pytest.mark.parametrize("weight", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("engine", [CG(60), Exact()], ids=repr)
def test_imaml_the_proximal_term_reaches_the_start(engine, weight):
    """phi = f + weight/2 |w - w_0|^2: the start's gradient is P' weight (H + weight I)^-1 g."""
    q = quadratic(6, 10.0, seed=9)
    solver = SGD(600, 1 / (1.2 + weight), proximal=weight)
    found = hypergradient(q.outer, q.inner, q.u, q.start, solver, engine)
    H = q.hessian(q.u) + weight * torch.eye(6, dtype=torch.float64)
    solution = torch.linalg.solve(H, q.B @ q.u["c"] + weight * q.P @ q.u["t"])
    torch.testing.assert_close(found.w["w"], solution, rtol=1e-9, atol=1e-9)
    x = torch.linalg.solve(H, solution - q.y + q.u["d"])
    expected = {"c": q.B.T @ x, "s": -(x @ solution), "d": solution + q.u["d"], "t": weight * q.P.T @ x}
    assert_close(found.grads, expected, 1e-7)  # the inner solution is converged to about 1e-9


def test_tasks_are_solved_side_by_side_each_with_its_own_residual():
    """Conditions from 1 to 1e4 in one batch: each task stops on its own and equals its own problem."""
    singles = [quadratic(8, condition, seed) for seed, condition in enumerate((1.0, 100.0, 1e4))]
    H = torch.stack([q.H for q in singles])
    drive = torch.stack([q.B @ q.u["c"] for q in singles])
    y = torch.stack([q.y for q in singles])
    u = {"scale": torch.tensor(1.3, dtype=torch.float64), "shift": torch.zeros(3, 8, dtype=torch.float64)}

    def inner(u, w):
        x = w["w"]
        return torch.einsum("ti,tij,tj->t", x, H, x) / 2 - ((u["scale"] * drive + u["shift"]) * x).sum(1)

    def outer(u, w):
        return (w["w"] - y).square().sum(1)

    start = {"w": torch.zeros(3, 8, dtype=torch.float64)}
    for engine in (CG(100), Exact(), CG(5), Neumann(7, 0.5)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConverged)
            together = hypergradient(outer, inner, u, start, SGD(30, 0.9), engine, task_axis=True)
            alone = [
                hypergradient(
                    lambda u, w, t=t: (w["w"] - y[t]).square().sum(),
                    lambda u, w, t=t: (
                        w["w"] @ H[t] @ w["w"] / 2 - (u["scale"] * drive[t] + u["shift"]) @ w["w"]
                    ),
                    {"scale": u["scale"], "shift": u["shift"][t]},
                    {"w": start["w"][t]},
                    SGD(30, 0.9),
                    engine,
                )
                for t in range(3)
            ]
        assert together.residual.shape == (3,)
        assert_close(
            {"scale": together.grads["scale"]}, {"scale": sum(a.grads["scale"] for a in alone) / 3}, 1e-6
        )
        torch.testing.assert_close(
            together.grads["shift"], torch.stack([a.grads["shift"] for a in alone]) / 3, rtol=1e-6, atol=1e-9
        )
        torch.testing.assert_close(
            together.residual, torch.stack([a.residual for a in alone]), rtol=1e-3, atol=1e-10
        )


def test_a_preconditioner_and_a_warm_start_save_iterations():
    q = quadratic(40, 1e4, seed=11)
    u, start = without_start(q)
    inverse = torch.linalg.inv(q.hessian(q.u) + 1e-3 * torch.eye(40, dtype=torch.float64))

    def run(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConverged)
            return hypergradient(q.outer, q.inner, u, start, SGD(5, q.lr), CG(iterations=300, **options))

    plain = run()
    preconditioned = run(preconditioner=lambda r: {"w": inverse @ r["w"]})
    warm = run(start=plain.log["solution"])
    assert preconditioned.log["iterations"] < plain.log["iterations"] / 2
    assert warm.log["iterations"] <= 1
    assert_close(preconditioned.grads, plain.grads, 1e-5)  # residual 1e-10 times the condition number 1e4
    assert_close(warm.grads, plain.grads, 1e-5)


@pytest.mark.parametrize("engine", [Exact(), CG(), Neumann()], ids=repr)
@pytest.mark.parametrize("steps", [0, 3])
def test_an_inner_solver_that_has_not_converged_is_warned_about_and_the_formula_returned(engine, steps):
    q = quadratic(5, 10.0, seed=2)
    u, start = without_start(q)
    with pytest.warns(NotConverged, match="has not converged"):
        found = hypergradient(q.outer, q.inner, u, start, SGD(steps, 0.1), engine)
    if not isinstance(engine, Neumann):
        assert_close(found.grads, formula(q, found.w["w"])[0], 1e-8)
    assert found.log["stationarity"] > 1e-3


@pytest.mark.parametrize("engine", [Exact(), CG(), Neumann()], ids=repr)
def test_starts_and_rates_are_refused_by_name(engine):
    q = quadratic(5, 10.0, seed=2)
    assert set(engine.unreachable(SGD(1, 0.1))) == {"starts", "rates"}
    assert set(engine.unreachable(SGD(1, 0.1, proximal=1.0))) == {"rates"}
    warnings.simplefilter("ignore", NotConverged)
    with pytest.raises(ValueError, match=r"u\['t'\].*proximal"):
        hypergradient(q.outer, q.inner, q.u, q.start, SGD(5, q.lr), engine)


def test_settings_are_checked():
    for bad in (
        lambda: CG(iterations=-1),
        lambda: CG(damping=float("nan")),
        lambda: CG(tolerance=2.0),
        lambda: Neumann(lr=0.0),
        lambda: Neumann(terms=1.5),
        lambda: Exact(damping=-1.0),
        lambda: hypergradient(
            lambda u, w: w["x"].sum(),
            lambda u, w: w["x"].square().sum() * u["c"],
            {"c": torch.tensor(1.0)},
            {"x": torch.ones(9)},
            SGD(1, 0.5),
            Exact(limit=8),
        ),
    ):
        with pytest.raises(ValueError):
            bad()

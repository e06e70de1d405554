"""jaxopt's own cases: the Jacobian of a ridge regression, and that of a lasso, in their penalty.

Source: google/jaxopt, tests/implicit_diff_test.py (`test_root_vjp`) and tests/proximal_gradient_test.py
(`test_lasso_implicit_diff`), which compare with difference quotients to 1e-2 and 1e-3; here with closed forms too.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.hypergradients import CG, Exact, FixedPointImplicit, Neumann
from tests.conftest import import_peer

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),
]  # jaxopt's own: it is no longer developed


def regression() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's `make_regression(n_samples=10, n_features=3, random_state=0)`, drawn in its order."""
    numbers = np.random.RandomState(0)
    x = numbers.standard_normal((10, 3))
    y = x @ (100 * numbers.uniform(size=3))
    rows, columns = np.arange(10), np.arange(3)
    numbers.shuffle(rows)
    numbers.shuffle(columns)
    return x[rows][:, columns], y[rows]


X, Y = regression()
ours_x, ours_y = torch.from_numpy(X), torch.from_numpy(Y)


@pytest.fixture(scope="module")
def jax() -> ModuleType:
    module = import_peer("jax")
    module.config.update("jax_enable_x64", True)
    return module


def half_mean_square(w: Tensor) -> Tensor:
    return (ours_x @ w - ours_y).square().mean() / 2


def jacobian(inner: Any, solver: Any, method: Any, penalty: float) -> Tensor:
    """`dw/d penalty`, one hypergradient an entry of w."""
    u = {"penalty": torch.tensor(penalty, dtype=torch.float64)}
    w0 = {"w": torch.zeros(3, dtype=torch.float64)}
    found = [
        mp.hypergradient(lambda u, w, i=i: w["w"][i], inner, u, w0, solver, method).grads["penalty"]
        for i in range(3)
    ]
    return torch.stack(found)


def test_ridge_jacobian(jax: ModuleType) -> None:
    """`w = (X'X + n p I)^-1 X'y`, so `dw/dp = -n (X'X + n p I)^-1 w`."""
    jaxopt, jnp, penalty = import_peer("jaxopt"), jax.numpy, 5.0
    system = X.T @ X + penalty * 10 * np.eye(3)
    solution = np.linalg.solve(system, X.T @ Y)
    closed = -10 * np.linalg.solve(system, solution)

    def objective(params: Any, lam: Any) -> Any:
        return 0.5 * jnp.mean((X @ params - Y) ** 2) + 0.5 * lam * jnp.sum(params**2)

    pulled = jax.vmap(
        lambda g: jaxopt.implicit_diff.root_vjp(jax.grad(objective), jnp.array(solution), (penalty,), g)[0]
    )(jnp.eye(3))
    np.testing.assert_allclose(np.asarray(pulled), closed, rtol=1e-5)  # its CG stops at about 1e-6

    def inner(u: Any, w: Any) -> Tensor:
        return half_mean_square(w["w"]) + u["penalty"] * w["w"].square().sum() / 2

    for method in (CG(10), Exact(), Neumann(60, 0.17), "fixed-point", "unroll"):
        found = jacobian(inner, mp.inner.SGD(60, 0.17), method, penalty)
        np.testing.assert_allclose(found.numpy(), closed, rtol=1e-8, err_msg=repr(method))


# of scikit-learn's Lasso(alpha=penalty, fit_intercept=False, tol=1e-10), with which jaxopt compares
LASSO = {10.0: [62.16485194, 29.03583355, 88.27012188], 60.0: [30.92343382, 0.0, 58.31102082]}


@pytest.mark.parametrize("penalty", LASSO)
def test_lasso_jacobian(jax: ModuleType, penalty: float) -> None:
    """On the support S, `dw/dp = -n (X_S'X_S)^-1 sign(w_S)`; 0 elsewhere. jaxopt's penalty is 10; 60 leaves one out."""
    jaxopt = import_peer("jaxopt")
    theirs = jaxopt.ProximalGradient(
        fun=jaxopt.objective.least_squares, prox=jaxopt.prox.prox_lasso, tol=1e-12, maxiter=2000,
        acceleration=True, implicit_diff=True,
    )  # fmt: skip
    pulled = jax.jacrev(lambda lam: theirs.run(np.zeros(3), lam, (X, Y)).params)(penalty)
    solution = np.array(LASSO[penalty])
    support = solution != 0
    closed, on = np.zeros(3), X[:, support]
    closed[support] = -10 * np.linalg.solve(on.T @ on, np.sign(solution[support]))
    np.testing.assert_allclose(np.asarray(pulled), closed, rtol=1e-4, atol=1e-6)

    def soft(u: Any, w: Any, lr: Any) -> dict[str, Tensor]:
        value, threshold = w["w"], lr * u["penalty"]
        return {"w": value.sign() * (value.abs() - threshold).clamp_min(0)}

    def inner(u: Any, w: Any) -> Tensor:
        return half_mean_square(w["w"])

    solver = mp.inner.Proximal(100, soft, lr=0.5)
    w = mp.inner.solve(inner, {"penalty": torch.tensor(penalty)}, {"w": torch.zeros(3).double()}, solver)
    np.testing.assert_allclose(w["w"].numpy(), solution, rtol=1e-8, atol=1e-8)
    for method in (*(FixedPointImplicit(linear, 100) for linear in ("gmres", "normal", "neumann")), "unroll"):
        found = jacobian(inner, solver, method, penalty)
        np.testing.assert_allclose(found.numpy(), closed, rtol=1e-8, atol=1e-10, err_msg=repr(method))

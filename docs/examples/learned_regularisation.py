"""One penalty for each of 40 weights of a linear model, learned by the hypergradient of a validation loss.

Only 5 of 40 features matter and there are 30 training rows, so a single penalty has to choose between shrinking
the 5 and letting the 35 fit noise. Inner problem: ridge regression with a penalty of its own for every weight,
in closed form. Outer problem: the mean squared error on validation rows, over the logarithms of the penalties.

You should see: the test error with 40 penalties well below that of the best single penalty, and penalties of the
useless features that are many times those of the useful ones.
"""

from __future__ import annotations

import torch

import metapeft as mp

FEATURES, USEFUL = 40, 5


def main(seed: int = 0) -> dict[str, float]:
    """Learn the penalties; returns what was found."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.zeros(FEATURES, 1)
    truth[:USEFUL] = 2 * torch.randn(USEFUL, 1, generator=random)

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, FEATURES, generator=random)
        return x, x @ truth + torch.randn(count, 1, generator=random)

    (x, y), (x_val, y_val), (x_test, y_test) = rows(30), rows(60), rows(2000)

    def scaled(u: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return x * (
            -u["log_penalty"] / 2
        ).exp(), y  # |w|^2 on scaled features is sum_j exp(log_penalty_j) w_j^2

    def predict(u: dict[str, torch.Tensor], w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return (x * (-u["log_penalty"] / 2).exp()) @ w["w"]

    def outer(u: dict[str, torch.Tensor], w: dict[str, torch.Tensor]) -> torch.Tensor:
        return (predict(u, w, x_val) - y_val).square().mean()

    def test_error(u: dict[str, torch.Tensor]) -> float:
        w = mp.inner.solve(None, u, start, solver)
        return float((predict(u, w, x_test) - y_test).square().mean())

    solver = mp.inner.Ridge(scaled, penalty=1.0)
    start = {"w": torch.zeros(FEATURES, 1)}
    single = {}
    for log in torch.linspace(-4, 6, 41):  # the best single penalty, by the same validation rows
        u = {"log_penalty": log.expand(FEATURES)}
        single[float(log)] = float(outer(u, mp.inner.solve(None, u, start, solver)))
    best = min(single, key=single.__getitem__)

    u = {"log_penalty": torch.full((FEATURES,), best)}
    problem = mp.Problem(outer, None, u, start, solver, "unroll")
    trainer = mp.BilevelTrainer(problem, torch.optim.Adam, lr=0.1, progress=False)
    trainer.fit(None, steps=150)
    learned = {"log_penalty": trainer.learner.trained["log_penalty"].detach()}
    log_penalty = learned["log_penalty"]
    found = {
        "test error, one penalty": test_error(u),
        "test error, 40 penalties": test_error(learned),
        "mean log penalty, useful": float(log_penalty[:USEFUL].mean()),
        "mean log penalty, useless": float(log_penalty[USEFUL:].mean()),
    }
    for name, value in found.items():
        print(f"{name:28} {value:7.3f}")
    return found


if __name__ == "__main__":
    main()

"""Inner rates, one for each step and variable, learned on random quadratics with one steep and one flat direction.

Gradient descent with one rate has to be slow in the flat direction or diverge in the steep one. With a rate of its
own for each step, 4 steps can do what Chebyshev's method does: steps beyond the stable rate, each of which makes
the steep direction worse before another one mends it. Few outer variables: forward mode is the engine for that.

You should see: the loss after 4 steps with learned rates far below the best single rate, and at least one learned
rate above 2 / steepest curvature, where a single rate diverges.
"""

from __future__ import annotations

import torch

import metapeft as mp

Tensors = dict[str, torch.Tensor]
STEPS, CURVATURE = 4, torch.tensor([10.0, 1.0])


def main(seed: int = 0) -> dict[str, float]:
    """Learn the rates; returns what was found."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.randn(64, 2, generator=random)  # 64 tasks, each with a minimum of its own

    def loss(u: Tensors, w: Tensors) -> torch.Tensor:
        return (CURVATURE * (w["x"] - targets).square()).sum(1) / 2

    start = {"x": torch.zeros(64, 2)}

    def mean_loss(solver: mp.inner.SGD, u: Tensors) -> float:
        return float(loss({}, mp.inner.solve(loss, u, start, solver, task_axis=True)).mean())

    candidates = torch.linspace(0.01, 0.2, 39).tolist()
    single = {rate: mean_loss(mp.inner.SGD(STEPS, rate), {}) for rate in candidates}
    best = min(single, key=single.__getitem__)

    solver = mp.inner.SGD(STEPS, best, rates="step")
    u = solver.rates(start)
    u = {name: value * torch.linspace(0.8, 1.2, STEPS) for name, value in u.items()}  # equal rates stay equal
    problem = mp.Problem(loss, loss, u, start, solver, "forward", task_axis=True)
    trainer = mp.BilevelTrainer(problem, torch.optim.Adam, lr=0.02, progress=False)
    trainer.fit(None, steps=200)
    rates = trainer.learner.trained["rates.x"].detach()
    found = {
        "best single rate": best,
        "loss, single rate": single[best],
        "loss, learned rates": mean_loss(solver, {"rates.x": rates}),
        "largest learned rate": float(rates.max()),
        "stable below": 2 / float(CURVATURE.max()),
    }
    for name, value in found.items():
        print(f"{name:22} {value:8.4f}")
    print("learned rates          ", [round(value, 3) for value in rates.tolist()])
    return found


if __name__ == "__main__":
    main()

"""MAML's regression on sines: a start from which a few gradient steps fit a sine of any amplitude and phase.

A task is `y = a sin(x - p)` with 10 points; a network of two layers of 40 units adapts to it by gradient descent.
The outer loop trains the start of the network, differentiated through one inner step.

You should see: before adaptation an error near the variance of the answers, about 4; after one step from the learned
start a quarter of that or less, and less still after five; five steps from a random start, at the best of several
rates, hardly get below where the learned start begins.
Source: Finn et al. 2017 (arXiv 1703.03400), section 5.1.
"""

from __future__ import annotations

import torch.nn.functional as F

import metapeft as mp


def main(steps: int = 800) -> dict[str, float]:
    """Train and evaluate; returns mean squared errors on 200 test tasks."""
    train, test = (
        mp.EpisodeSampler(mp.load_dataset("sinusoid", split=split), 1, 10, 20, seed=0)
        for split in ("train", "test")
    )
    body = mp.backbones.mlp(1, 1, hidden=(40, 40))

    def maml(lr: float) -> mp.Learner:
        return mp.methods.maml(body, steps=1, lr=lr, loss=F.mse_loss, norm="running")

    def error(learner: mp.Learner, inner_steps: int) -> float:
        return mp.evaluate(learner, test, episodes=200, steps=inner_steps, tasks_per_batch=100).loss

    learner = maml(0.02)
    trainer = mp.BilevelTrainer(learner, lr=1e-2, tasks_per_step=25, schedule="cosine", progress=False)
    random = min(error(maml(lr), 5) for lr in (0.003, 0.01, 0.03, 0.1))
    trainer.fit(train, steps)
    found = {
        "random start, 5 steps": random,
        "learned start, 0 steps": error(learner, 0),
        "learned start, 1 step": error(learner, 1),
        "learned start, 5 steps": error(learner, 5),
    }
    for name, value in found.items():
        print(f"{name:24} {value:6.3f}")
    return found


if __name__ == "__main__":
    main()

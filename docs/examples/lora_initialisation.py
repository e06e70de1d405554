"""A start of LoRA, learned for a small transformer whose tasks differ by low-rank changes of what it attends to.

A task shows sequences of 8 tokens, each a key and a number, and asks for the number whose key lies in the direction
that the task has drawn: a new one in every task, but all lie in one plane out of 8 dimensions. W0
is frozen and random; LoRA of rank 2 on query and value projections and the readout adapts in 5 steps. The outer
loop learns where LoRA starts and its inner rates.

You should see: five inner steps from LoRA's usual start (A random, B = 0) do not even reach the error of answering
with the mean, at the best of several rates; five from the learned start are well below it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp

WIDTH, TOKENS, STEPS = 16, 8, 5


class Transformer(nn.Module):
    """Two layers of attention over tokens `(B, 8, 9)`; reads its answer `(B, 1)` from the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(9, WIDTH)
        self.first = nn.TransformerEncoderLayer(
            WIDTH, 2, 32, dropout=0.0, activation="gelu", batch_first=True
        )
        self.second = nn.TransformerEncoderLayer(
            WIDTH, 2, 32, dropout=0.0, activation="gelu", batch_first=True
        )
        self.classifier = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(self.embed(x))).mean(1))


class Tasks:
    """Episodes of the family: task i of a split is a function of `i` and the split's seed."""

    def __init__(self, seed: int, shots: int = 24, queries: int = 24) -> None:
        self.seed, self.shots, self.queries = seed, shots, queries

    def batch(self, start: int, count: int) -> mp.EpisodeBatch:
        drawn = [self._task(index) for index in range(start, start + count)]
        x, y = (torch.stack(part) for part in zip(*drawn))
        cut = self.shots
        return mp.EpisodeBatch(x[:, :cut], y[:, :cut], x[:, cut:], y[:, cut:])

    def _task(self, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(1_000_003 * self.seed + index)
        angle = 2 * torch.pi * torch.rand(1, generator=random)
        direction = torch.cat([angle.cos(), angle.sin(), torch.zeros(6)])
        items = self.shots + self.queries
        keys = F.normalize(torch.randn(items, TOKENS, 8, generator=random), dim=-1)
        numbers = torch.randn(items, TOKENS, 1, generator=random)
        attention = torch.softmax(6 * keys @ direction, 1).unsqueeze(-1)
        return torch.cat([keys, numbers], -1), (attention * numbers).sum(1)


def main(steps: int = 100) -> dict[str, float]:
    """Train the start; returns what was found."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = Transformer()
    formats = {"*.in_proj_weight": mp.LoRA(2), "*linear1*": mp.LoRA(2), "classifier.*": mp.Full()}

    def learner_of(lr: float) -> mp.Learner:
        return mp.Learner(
            mp.attach(body, formats),
            mp.inner.SGD(STEPS, lr, rates="step"),
            outer=("factors", "rates"),
            loss=F.mse_loss,
        )

    def test_loss(learner: mp.Learner) -> float:
        batch = Tasks(seed=2).batch(0, 64)
        many = learner.adapt_many(batch.support_x, batch.support_y)
        return float(F.mse_loss(many(batch.query_x), batch.query_y))

    usual = {lr: test_loss(learner_of(lr)) for lr in (0.01, 0.03, 0.1, 0.3, 1.0)}
    best = min(usual, key=usual.__getitem__)
    learner = learner_of(best)
    trainer = mp.BilevelTrainer(learner, lr=1e-2, tasks_per_step=6, schedule="cosine", progress=False)
    trainer.fit(Tasks(seed=1), steps)
    variance = float(Tasks(seed=2).batch(0, 64).query_y.var())
    found = {
        "variance of the answers": variance,
        "loss, usual start": usual[best],
        "its rate, the best of five": best,
        "loss, learned start": test_loss(learner),
    }
    for name, value in found.items():
        print(f"{name:28} {value:7.4f}")
    return found


if __name__ == "__main__":
    main()

"""What can be had without meta-learning: on pairs by a rule that knows of the halves, on functions by a regression."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor

import metapeft as mp
from benchmarks.generation_rows import Family
from metapeft.generators.class_encoder import class_statistics
from metapeft.generators.support import Support

STEPS = 3000


def ceiling_of(family: Family, episodes: int | None = None) -> dict[str, Any]:
    """Accuracy of each test task by nearest centroids on one half of the images, which is chosen in two ways.

    A prototypical network is trained on images of which the half that does not count is blank. `rule`: of both halves
    that in which the classes of the support set lie further apart, by the mean over features of log(variance within /
    total variance). `told`: the half that counts.
    """
    splits = family.splits(0)
    learner = mp.methods.protonet(family.backbone(0), preprocess=splits["train"].dataset.preprocess)
    trainer = mp.BilevelTrainer(
        learner, lr=family.lr, tasks_per_step=family.tasks, clip=10.0, schedule="cosine", progress=False
    )
    trainer.fit(Halved(splits["train"]), STEPS)
    values: dict[str, list[float]] = {"rule": [], "told": []}
    for start in range(0, episodes or family.episodes, 8):
        batch = splits["test"].batch(start, 8)
        ratios, hits = [], []
        for half in (0, 1):
            seen = _halved(batch, torch.full((8,), half))
            objectives = learner.objectives(seen, training=False)
            with torch.no_grad():
                features = objectives.passes.run({}, {}, {}, "support")
                logits = objectives.predict({}, {})
            support = Support(features, batch.support_y, None, batch.ways)
            ratios.append(class_statistics(support)["ratio"].mean(-1))
            hits.append((logits.argmax(-1) == batch.query_y).float().mean(1))
        rule = (ratios[1] < ratios[0]).long()
        for name, chosen in (("rule", rule), ("told", batch.kind)):
            values[name] += torch.stack(hits).gather(0, chosen.unsqueeze(0))[0].tolist()
    return {
        "values": {name: [round(value, 4) for value in found] for name, found in values.items()},
        "steps": STEPS,
    }


class Halved:
    """Episodes of which the half that does not count is blank."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def batch(self, start: int, count: int) -> Any:
        """As the sampler's."""
        found = self.sampler.batch(start, count)
        return _halved(found, found.kind)


def _halved(batch: Any, half: Tensor) -> Any:
    """The episodes with all but one half of each image blank, and that half on the left; 0 is the left one."""

    def turned(images: Tensor) -> Tensor:
        width = images.shape[-1] // 2
        left, right = images[..., :width], images[..., width:]
        chosen = torch.where(half.view(-1, 1, 1, 1, 1) == 0, left, right)
        return torch.cat([chosen, torch.zeros_like(chosen)], -1)

    return replace(batch, support_x=turned(batch.support_x), query_x=turned(batch.query_x))


PENALTY = 1e-2


def ridge_of(family: Family) -> dict[str, Any]:
    """Error of each test task by a ridge regression on the cubic monomials of its own points, each scaled to 1."""
    batch = family.splits(0)["test"].batch(0, family.episodes)
    support, query = (_monomials(x.double()) for x in (batch.support_x, batch.query_x))
    size = support.abs().amax((0, 1))
    support, query = support / size, query / size
    gram = support.mT @ support + PENALTY * torch.eye(support.shape[-1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, support.mT @ batch.support_y.double())
    errors = (query @ weights - batch.query_y.double()).square().mean((1, 2))
    return {
        "values": {"ridge": [round(value, 4) for value in errors.tolist()]},
        "penalty": PENALTY,
        "degree": 3,
    }


def _monomials(x: Tensor) -> Tensor:
    """All products of up to three inputs `(T, S, inputs)`, the empty one among them."""
    columns = [torch.ones_like(x[..., 0])]
    for degree in (1, 2, 3):
        for which in combinations_with_replacement(range(x.shape[-1]), degree):
            columns.append(x[..., list(which)].prod(-1))
    return torch.stack(columns, -1)

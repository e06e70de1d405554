"""Sinusoid regression by the same recipes: the family on which MAML was shown first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.backbones.table import registry as backbones
from metapeft.datasets.by_name import load_dataset
from metapeft.episodes.sampler import EpisodeSampler
from metapeft.inner.descent import SGD
from metapeft.learner.learner import Learner
from metapeft.methods import recipes
from metapeft.training.evaluation import Evaluation, evaluate
from metapeft.training.trainer import BilevelTrainer

STEPS = (0, 1, 5)
SHOTS, POINTS, TASKS, EPISODES = 10, 20, 25, 200


@dataclass
class Sinusoids:
    """What came out: evaluations by method and number of inner steps, and some fits to look at."""

    evaluations: dict[str, dict[int, Evaluation]]
    fits: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Mean squared errors with their intervals, as JSON can say them."""
        first = next(iter(self.evaluations.values()))[STEPS[-1]]
        return {
            "rows": {
                name: {str(steps): [found.loss, found.ci95] for steps, found in row.items()}
                for name, row in self.evaluations.items()
            },
            "protocol": str(first.protocol),
            "fits": [{name: value.tolist() for name, value in fit.items()} for fit in self.fits],
        }


def learners(seed: int, **place: Any) -> dict[str, Learner]:
    """MAML and LoRA-ML on a small MLP with a mean squared error; `place` has device, dtype and autocast."""
    factory = backbones.resolve("mlp")
    common: dict[str, Any] = {"loss": F.mse_loss, "head": "learned", "norm": "running", **place}
    body = factory(1, 1, hidden=(40, 40), seed=seed)
    # one step at the rate of Finn et al. 2017: a learned one grows until more steps than in training diverge
    inner = SGD(1, 0.01)
    return {
        "maml": recipes.maml(body, inner=inner, outer=("weights",), **common),
        "lora-ml": recipes.lora_ml(body, rank=8, inner=inner, outer=("weights", "factors"), **common),
    }


def run(
    steps: int, seed: int, folder: Path, progress: bool = True, memory: str | None = None, **place: Any
) -> Sinusoids:
    """Train both recipes for `steps` outer steps of 25 tasks, 10-shot, and evaluate 0, 1 and 5 inner steps.

    Args:
        folder: a run folder for each recipe is made in it. memory: as `BilevelTrainer` takes it.
        place: device, dtype and autocast of the learners.
    """
    sampler = {
        split: EpisodeSampler(load_dataset("sinusoid", split=split), 1, SHOTS, POINTS, seed=seed)
        for split in ("train", "test")
    }
    evaluations: dict[str, dict[int, Evaluation]] = {}
    fits: list[dict[str, Any]] = []
    for name, learner in learners(seed, **place).items():
        trainer = BilevelTrainer(
            learner, lr=1e-2, tasks_per_step=TASKS, schedule="cosine", progress=progress, memory=memory
        )
        if trainer.has_run(folder / name):
            trainer.resume(folder / name, sampler["train"])
        else:
            trainer.fit(sampler["train"], steps, run_dir=folder / name, checkpoint_every=200)
        evaluations[name] = {
            k: evaluate(learner, sampler["test"], EPISODES, steps=k, tasks_per_batch=50) for k in STEPS
        }
        if not fits:
            fits = pictures(learner, sampler["test"])
    return Sinusoids(evaluations, fits)


def pictures(learner: Learner, sampler: EpisodeSampler, count: int = 3) -> list[dict[str, Any]]:
    """Curves of the first test tasks before and after adaptation, with the truth and the support points."""
    shown = []
    for task in range(count):
        episode = sampler[task]
        x = torch.linspace(-5, 5, 101).unsqueeze(1)
        before = learner.adapt(episode.support_x, episode.support_y, steps=0)(x)
        after = learner.adapt(episode.support_x, episode.support_y)(x)  # as many steps as in training
        points = (
            torch.cat([episode.support_x, episode.query_x]),
            torch.cat([episode.support_y, episode.query_y]),
        )
        shown.append(
            {
                "x": x.flatten(),
                "truth": sine_through(*points)(x).flatten(),
                "before": before.flatten(),
                "after": after.flatten(),
                "support_x": episode.support_x.flatten(),
                "support_y": episode.support_y.flatten(),
            }
        )
    return shown


def sine_through(x: Tensor, y: Tensor) -> Any:
    """The sine `b sin x + c cos x` through points of one, by least squares: exact without noise."""
    basis = torch.cat([x.sin(), x.cos()], 1).double()
    weights = torch.linalg.lstsq(basis, y.double()).solution
    return lambda at: (torch.cat([at.sin(), at.cos()], 1).double() @ weights).to(at)

"""Sinusoid regression by the same recipes: the family on which MAML was shown first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.backbones.table import registry as backbones
from metapeft.datasets.by_name import load_dataset
from metapeft.episodes.sampler import EpisodeSampler
from metapeft.experiments.results import Interval, SinusoidResults
from metapeft.inner.descent import SGD
from metapeft.learner.learner import Learner
from metapeft.methods import recipes
from metapeft.training.evaluation import evaluate
from metapeft.training.trainer import BilevelTrainer

STEPS = (0, 1, 5)
SHOTS, POINTS, TASKS, EPISODES = 10, 20, 25, 200


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
) -> SinusoidResults:
    """Train both recipes for `steps` outer steps of 25 tasks, 10-shot, and evaluate 0, 1 and 5 inner steps.

    Args:
        folder: a run folder for each recipe is made in it. memory: as `BilevelTrainer` takes it.
        place: device, dtype and autocast of the learners.
    """
    sampler = {
        split: EpisodeSampler(load_dataset("sinusoid", split=split), 1, SHOTS, POINTS, seed=seed)
        for split in ("train", "test")
    }
    rows: dict[str, dict[str, Interval]] = {}
    fits: list[dict[str, list[float]]] = []
    protocol = ""
    for name, learner in learners(seed, **place).items():
        trainer = BilevelTrainer(
            learner, lr=1e-2, tasks_per_step=TASKS, schedule="cosine", progress=progress, memory=memory
        )
        if trainer.has_run(folder / name):
            trainer.resume(folder / name, sampler["train"])
        else:
            trainer.fit(sampler["train"], steps, run_dir=folder / name, checkpoint_every=200)
        found = {k: evaluate(learner, sampler["test"], EPISODES, steps=k, tasks_per_batch=50) for k in STEPS}
        rows[name] = {str(k): (one.loss, one.ci95) for k, one in found.items()}
        if not fits:
            fits, protocol = pictures(learner, sampler["test"]), str(found[STEPS[-1]].protocol)
    return SinusoidResults(rows, protocol, fits)


def pictures(learner: Learner, sampler: EpisodeSampler, count: int = 3) -> list[dict[str, list[float]]]:
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
        fit = {
            "x": x,
            "truth": sine_through(*points)(x),
            "before": before,
            "after": after,
            "support_x": episode.support_x,
            "support_y": episode.support_y,
        }
        shown.append({name: value.flatten().tolist() for name, value in fit.items()})
    return shown


def sine_through(x: Tensor, y: Tensor) -> Any:
    """The sine `b sin x + c cos x` through points of one, by least squares: exact without noise."""
    basis = torch.cat([x.sin(), x.cos()], 1).double()
    weights = torch.linalg.lstsq(basis, y.double()).solution
    return lambda at: (torch.cat([at.sin(), at.cos()], 1).double() @ weights).to(at)

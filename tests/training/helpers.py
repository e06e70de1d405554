"""A small run that has everything a checkpoint must hold, as a module that a test can start in a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import metapeft as mp
from metapeft.base.state import digest
from metapeft.datasets.images import ImageData

STEPS = 12
PLAN: dict[str, Any] = {
    "validate_every": 3, "validation_episodes": 4, "checkpoint_every": 2, "log_every": 2,
}  # fmt: skip


def data(split: str = "train") -> ImageData:
    random = torch.Generator().manual_seed(len(split))
    images = torch.randint(0, 256, (48, 1, 16, 16), dtype=torch.uint8, generator=random)
    names = [f"{split}{n}" for n in range(6)]
    return ImageData(images, torch.arange(48) % 6, names, split, mean=[0.5], deviation=[0.3])


def sampler(split: str = "train", **options: Any) -> mp.EpisodeSampler:
    return mp.EpisodeSampler(data(split), 3, 1, 2, seed=0, **options)


def learner(kind: str = "metapeft", body: torch.nn.Module | None = None, **options: Any) -> mp.Learner:
    body = mp.backbones.conv4(ways=3, channels=1, width=4, size=16) if body is None else body
    inner = mp.inner.SGD(2, 0.05, rates="step")
    if kind == "metapeft":
        return mp.methods.metapeft(
            body, format=mp.CP(2), inner=inner, hidden=4, norm="support", shots=1, **options
        )
    if kind == "warm":
        return mp.methods.lora_ml(
            body, rank=2, inner=mp.inner.SGD(2, 0.05), hypergradient="envelope", inner_data="both", **options
        )
    if kind == "dropout":
        return mp.methods.maml(dropping(), steps=2, **{"dropout": True, **options})
    return mp.methods.protonet(body, **options)


def dropping() -> torch.nn.Module:
    """A network with dropout, which no registry knows, with the same weights at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        maps = [torch.nn.Conv2d(1, 3, 3, stride=4), torch.nn.BatchNorm2d(3), torch.nn.Dropout2d(0.2)]
        rest = [torch.nn.Flatten(), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(48, 3)]
        return torch.nn.Sequential(*maps, *rest)


def trainer(task: Any = None, kind: str = "metapeft", **options: Any) -> mp.BilevelTrainer:
    chosen: dict[str, Any] = {
        "lr": 3e-3, "tasks_per_step": 4, "chunk": None if kind == "warm" else 3, "clip": 1.0,
        "schedule": "cosine", "warm_start": kind == "warm", "progress": False, **options,
    }  # fmt: skip
    return mp.BilevelTrainer(learner(kind) if task is None else task, **chosen)


def go_on(folder: Path, kind: str) -> str:
    """Start the run, or go on with it; returns a digest of the learner's final state."""
    own = trainer(kind=kind)
    if own.has_run(folder):
        own.resume(folder, sampler(), sampler("val"))
    else:
        own.fit(sampler(), STEPS, sampler("val"), folder, **PLAN)
    return digest(own.learner.state())


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(go_on(Path(sys.argv[1]), sys.argv[2]))

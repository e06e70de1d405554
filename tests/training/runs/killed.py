"""A run of many small steps with everything that a checkpoint must hold, for a test to kill on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import metapeft as mp
from metapeft.base.state import digest
from tests.training.helpers import learner, sampler, trainer

#: of each kind of learner, the times that its run is killed, and its steps
KINDS = {"metapeft": (10, 130), "warm": (3, 50), "protonet": (3, 50), "dropout": (3, 50)}
PLAN: dict[str, Any] = {
    "validate_every": 10, "validation_episodes": 2, "checkpoint_every": 3, "log_every": 2,
}  # fmt: skip


def made(kind: str) -> mp.BilevelTrainer:
    """The trainer of `helpers`, with two small layers and a step's two tasks in chunks of one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [nn.Conv2d(1, 2, 3, stride=4), nn.BatchNorm2d(2), nn.ReLU()]
        body = nn.Sequential(*first, nn.Flatten(), nn.Linear(32, 3))
    chunk = None if kind == "warm" else 1
    return trainer(learner(kind, body), kind, tasks_per_step=2, chunk=chunk)


def go_on(folder: Path, kind: str) -> None:
    """Start the run, or go on with it; at its end the digest of the learner's state is in `<folder>.end`."""
    torch.set_num_threads(1)
    own = made(kind)
    if own.has_run(folder):
        own.resume(folder, sampler(), sampler("val"))
    else:
        own.fit(sampler(), KINDS[kind][1], sampler("val"), folder, **PLAN)
    folder.with_suffix(".end").write_text(digest(own.learner.state()))

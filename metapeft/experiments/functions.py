"""Regression of functions of five kinds by the same recipes: the whole method, its controls, and LoRA-ML."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from metapeft.backbones.table import registry as backbones
from metapeft.base.errors import NumericalError
from metapeft.datasets.by_name import load_dataset
from metapeft.episodes.sampler import EpisodeSampler
from metapeft.experiments.compared_methods import OWN
from metapeft.experiments.live_view import LiveView
from metapeft.experiments.results import Regression
from metapeft.generators.control import Blind
from metapeft.inner.descent import SGD
from metapeft.learner.learner import Learner
from metapeft.methods import recipes
from metapeft.methods.common import default_encoder
from metapeft.training.evaluation import Evaluation, compare, evaluate
from metapeft.training.trainer import BilevelTrainer
from metapeft.updates.formats.cp import CP

STEPS = (0, 1, 5)
# Of the one inner step in training. Five, unbounded, end at infinity once a task becomes too curved for the rate; with
# their gradients cut and rates learned they hold, are better at five steps at test, and worse at none and at one.
RATE = 0.001
SHOTS, POINTS, TASKS, EPISODES = 10, 20, 25, 400
DIRECT = 0.5  # of the outer steps, as in the main job


def learners(seed: int, **place: Any) -> dict[str, Learner]:
    """The rows on a small MLP with a mean squared error; `place` has device, dtype and autocast."""
    factory = backbones.resolve("mlp")
    common: dict[str, Any] = {"loss": F.mse_loss, "head": "learned", "norm": "running", "seed": seed, **place}
    body = factory(1, 1, hidden=(40, 40), seed=seed)
    common["inner"] = SGD(1, RATE)
    whole: dict[str, Any] = {
        "format": CP(8, shift=True, gate=True, dictionary=True),
        "selection": None,
        **common,
    }
    blind = Blind(default_encoder(body, F.mse_loss, SHOTS))
    return {
        OWN: recipes.metapeft(body, **whole),
        "constant": recipes.metapeft(body, generator=None, **whole),
        "blind": recipes.metapeft(body, generator=blind, **whole),
        "lora-ml": recipes.lora_ml(body, rank=8, **common),
    }


def run(
    steps: int, seed: int, folder: Path, view: LiveView, memory: str | None = None, **place: Any
) -> Regression:
    """Train each row for `steps` outer steps of 25 tasks, 10-shot, and evaluate 0, 1 and 5 inner steps.

    Args:
        folder: a run folder for each row is made in it. view: is told where it is.
        memory: as `BilevelTrainer` takes it.
        place: device, dtype and autocast of the learners.
    """
    sampler = {
        split: EpisodeSampler(load_dataset("functions", split=split), 1, SHOTS, POINTS, seed=seed)
        for split in ("train", "test")
    }
    made = learners(seed, **place)
    found = {}
    view.begin("functions", "functions", "")
    for number, (name, learner) in enumerate(made.items()):

        def tell(step: int, total: int, numbers: str, number: int = number, name: str = name) -> None:
            view.now(f"{name} ({number + 1} of {len(made)}), training")
            view.tell(number * total + step, len(made) * total, numbers)

        trainer = BilevelTrainer(
            learner, lr=3e-3, tasks_per_step=TASKS, clip=10.0, schedule="cosine", progress=tell, memory=memory,
            direct_steps=0 if name == "lora-ml" else round(DIRECT * steps),
        )  # fmt: skip
        if trainer.has_run(folder / name):
            trainer.resume(folder / name, sampler["train"])
        else:
            trainer.fit(sampler["train"], steps, run_dir=folder / name, checkpoint_every=200)
        view.now(f"{name} ({number + 1} of {len(made)}), testing")
        found[name] = evaluations(learner, sampler["test"])
    own = found[OWN]
    pairs = {
        name: {k: compare(one, own[k]) for k, one in row.items() if k in own}
        for name, row in found.items()
        if name != OWN
    }
    return Regression(
        {name: {k: (one.loss, one.ci95) for k, one in row.items()} for name, row in found.items()},
        _protocol(own),
        pictures(made, seed),
        "functions",
        {name: {k: (pair.difference, pair.ci95) for k, pair in row.items()} for name, row in pairs.items()},
    )


def _protocol(row: Mapping[str, Evaluation]) -> str:
    """What all numbers of the table share."""
    found = next((one.protocol for one in row.values() if one.protocol is not None), None)
    return "" if found is None else str(dataclasses.replace(found, inner_steps=None))


def evaluations(learner: Learner, sampler: EpisodeSampler) -> dict[str, Evaluation]:
    """Number of inner steps -> errors; those under which an adaptation diverges are left out."""
    found = {}
    for count in STEPS:
        with contextlib.suppress(NumericalError):
            found[str(count)] = evaluate(learner, sampler, EPISODES, steps=count, tasks_per_batch=50)
    return found


def pictures(made: Mapping[str, Learner], seed: int) -> list[dict[str, list[float]]]:
    """Curves of the first test task of each kind, with the truth and the support points.

    Before: the constant row without a step, which knows nothing of the task. After: the whole method, with as many
    steps as in training.
    """
    families = load_dataset("functions", split="test"), load_dataset("functions", split="test", noise=0.0)
    noisy, exact = (EpisodeSampler(family, 1, SHOTS, 200, seed=seed) for family in families)
    kinds = noisy.kind_of(torch.arange(100)).tolist()
    shown = []
    for task in sorted(kinds.index(kind) for kind in set(kinds)):
        support, truth = noisy[task], exact[task]  # the same function at the same places
        order = truth.query_x.flatten().argsort()
        x = truth.query_x[order]
        given = support.support_x, support.support_y
        fit = {
            "x": x,
            "truth": truth.query_y[order],
            "before": made["constant"].adapt(*given, steps=0)(x),
            "after": made[OWN].adapt(*given)(x),
            "support_x": support.support_x,
            "support_y": support.support_y,
        }
        shown.append({name: value.flatten().tolist() for name, value in fit.items()})
    return shown

"""What generation costs: a training step with a generator against the same step with a constant seed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from torch import nn

import metapeft as mp
from benchmarks.generation_rows import FAMILIES, HIDDEN, ON_PAIRS
from metapeft.generators.generator import Generator
from metapeft.learner.learner import Learner

INNER_STEPS, ROUNDS = 5, 15


def learner(generator: Generator | None) -> Learner:
    """The learner of glyph pairs at five inner steps."""
    family = FAMILIES["glyph-pairs"]
    model = mp.attach(
        family.backbone(0), ON_PAIRS, targets="body", preprocess=family.splits(0)["train"].dataset.preprocess
    )
    groups = ["weights", "factors", "rates"] + ["generator"] * (generator is not None)
    inner = mp.inner.SGD(INNER_STEPS, 0.01, rates="step")
    return mp.Learner(model, inner, outer=groups, head="prototype-init", generator=generator)


def embedder() -> nn.Module:
    """The backbone again without its classifier, to be trained with the generator."""
    module: nn.Module = mp.backbones.conv4(width=16, blocks=3, neck=HIDDEN, seed=1)
    return nn.Sequential(*list(module.children())[:-1])


def times() -> dict[str, Any]:
    """Generator -> the median over rounds of its step's processor time over that of the constant seed, in turns."""
    batch = FAMILIES["glyph-pairs"].splits(0)["train"].batch(0, 4)
    made: dict[str, Generator] = {
        "class-encoder": mp.generators.ClassEncoder(HIDDEN),
        "mapping-net": mp.generators.MappingNet(HIDDEN),
        "attention-encoder": mp.generators.AttentionEncoder(HIDDEN),
        "class-encoder with an embedder of its own": mp.generators.ClassEncoder(
            HIDDEN, features=embedder(), size=HIDDEN, train_features=True
        ),
    }
    learners = {"constant": learner(None), **{name: learner(one) for name, one in made.items()}}
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(ROUNDS + 1):  # the first makes kernels and plans
        for name, one in learners.items():
            seconds[name].append(_took(lambda: one.hypergradient(batch)))  # noqa: B023
    ratios = {
        name: statistics.median(own / base for own, base in zip(values[1:], seconds["constant"][1:]))
        for name, values in seconds.items()
    }
    return {"inner_steps": INNER_STEPS, "rounds": ROUNDS, "ratios": ratios, "bar": 1.15, "seconds": seconds}


def _took(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun

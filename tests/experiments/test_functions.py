"""The main job's regression: five inner steps stay finite on functions of any size, and rates are learned."""

from __future__ import annotations

import torch

import metapeft as mp
from metapeft.experiments import functions


def test_a_steep_function_ends_at_no_infinity() -> None:
    """A network whose curvature is far above what the rate allows, as outer steps make it on the way."""
    data = mp.EpisodeSampler(mp.load_dataset("functions", split="train"), 1, 10, 10, seed=0)
    batch = data.batch(0, 25)
    for name, learner in functions.learners(0).items():
        with torch.no_grad():
            for variable, value in learner.variables.items():
                if variable.startswith("weights.") and value.dim() > 1:
                    value.mul_(6.0)
        adapted = learner.adapt_many(batch.support_x, batch.support_y, steps=functions.STEPS[-1])
        assert adapted(batch.query_x).isfinite().all(), name


def test_every_row_learns_its_rates_at_five_steps() -> None:
    for name, learner in functions.learners(0).items():
        assert learner.inner.steps == functions.TRAINED_STEPS == functions.STEPS[-1], name
        assert "rates" in learner.outer
        assert learner.inner.clip == functions.CLIP

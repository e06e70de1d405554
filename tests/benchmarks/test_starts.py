"""Starts are evaluated on features that are looked up: the numbers are those of the library's evaluation."""

from __future__ import annotations

import pytest
import torch

import metapeft as mp
from benchmarks.starts import NORMALIZE, accuracies, features_of


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_looked_up_features_give_what_evaluation_gives(normalize) -> None:
    body = mp.backbones.conv4(width=8, seed=0)
    with torch.no_grad():
        body.norm1.running_mean.add_(0.1)
    data = mp.load_dataset("glyphs", split="val")
    head = mp.heads.Prototypes(normalize=normalize)
    learner = mp.methods.centroids(body, head=head, preprocess=data.preprocess)
    if normalize == "center+l2":
        mp.fit_center(learner, data, images=200)
    sampler = mp.EpisodeSampler(data, 5, 2, 4, seed=3)
    features = features_of(learner.body, data)
    found = accuracies(features, sampler, head, learner.center, 12)
    expected = mp.evaluate(learner, sampler, episodes=12).values
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)

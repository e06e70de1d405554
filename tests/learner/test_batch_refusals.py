"""Batches, masks and targets that a loss would take without a word are refused by a learner."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from tests.test_refusals import SINUSOIDS, image_data, mapping, mse, plain


def classes(**change: Any) -> Any:
    batch = mp.EpisodeSampler(image_data(), 2, 1, 1).batch(0, 3)
    return dataclasses.replace(batch, **{name: make(getattr(batch, name)) for name, make in change.items()})


def on_images(**options: Any) -> mp.Learner:
    return mp.methods.maml(mp.backbones.mlp(64, 2, hidden=(4,)), **{"norm": "running", **options})


def fits(y: Any = lambda y: y, **options: Any) -> Any:
    batch = SINUSOIDS.batch(0, 2)
    changed = dataclasses.replace(batch, support_y=y(batch.support_y), query_y=y(batch.query_y))
    own = mp.Learner(
        mp.attach(mp.backbones.mlp(1, 1, hidden=(4,)), mp.Full()), mp.inner.SGD(1, 0.01), **options
    )
    return own.hypergradient(changed)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: on_images().hypergradient(classes(query_y=lambda y: y * 0 - 100)),
            "query_y has a task of which nothing counts",
        ),
        (
            lambda: on_images().hypergradient(classes(query_y=lambda y: y + 6)),
            "query_y has labels 6 to 7: 2 ways",
        ),
        (
            lambda: on_images().hypergradient(classes(support_y=lambda y: y - 1)),
            "support_y has labels -1 to 0",
        ),
        (
            lambda: on_images().hypergradient(
                classes(support_mask=lambda _: torch.zeros(3, 2, dtype=torch.bool))
            ),
            "support_mask is False everywhere in a task",
        ),
        pytest.param(
            lambda: on_images(loss=F.mse_loss).hypergradient(classes()),
            "loss= cannot be taken of outputs",
            marks=pytest.mark.filterwarnings("ignore:Using a target size"),
        ),
        (lambda: fits(lambda y: y[..., 0], loss=F.mse_loss), "a target has the axes of an output"),
        (lambda: fits(lambda y: y.expand(-1, -1, 2), loss=F.mse_loss), "a target has the axes of an output"),
        (lambda: fits(lambda y: y[..., 0], loss=mse), "a target has the axes of an output"),
        (lambda: fits(), "a regression needs another loss"),
        (lambda: mp.Learner(plain({}), head="zero"), 'head="zero" without an inner solver stays 0'),
        (lambda: many().task(5), "index=5: there are tasks 0 to 1"),
        (lambda: many().task(-1), "index=-1: there are tasks 0 to 1"),
        (lambda: many()(torch.zeros(3, 2, 64)), r"x holds 3 task\(s\), this was adapted to 2"),
        (lambda: own_features(size=5), r"features have shape \(4, 3\): \(rows, 5\) is needed"),
    ],
)
def test_what_a_loss_would_take_without_a_word_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_batch_of_ones_own_need_not_name_its_classes() -> None:
    whole, bare = classes(), classes(classes=lambda _: None)
    torch.testing.assert_close(on_images().hypergradient(bare).value, on_images().hypergradient(whole).value)


def many() -> Any:
    return on_images().adapt_many(torch.zeros(2, 2, 64), torch.tensor([[0, 1], [0, 1]]))


def own_features(size: int) -> Any:
    features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    body = mp.backbones.mlp(64, 2, hidden=(4,))
    own = mp.methods.metapeft(body, generator=mapping(features=features, size=size), format=mp.CP(1))
    return own.adapt_many(torch.zeros(2, 2, 1, 8, 8), torch.tensor([[0, 1], [0, 1]]))

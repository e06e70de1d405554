"""Bytes and floats: support and query are of one kind, and floats that were not preprocessed are said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.learner import items

DATA = mp.load_dataset("glyphs")


def learner() -> mp.Learner:
    body = mp.backbones.conv4(ways=3, width=4)
    return mp.methods.centroids(body, preprocess=DATA.preprocess)


def floats(x: Tensor) -> Tensor:
    return x.float() / 255


def test_one_task_is_of_one_kind() -> None:
    batch = mp.EpisodeSampler(DATA, 3, 2, 2).batch(0, 2)
    one = learner()
    for adapted, query in (
        (one.adapt_many(batch.support_x, batch.support_y), floats(batch.query_x)),
        (one.adapt_many(floats(batch.support_x), batch.support_y), batch.query_x),
        (one.adapt_many(batch.support_x, batch.support_y).task(0), floats(batch.query_x[0])),
    ):
        with pytest.raises(ValueError, match="both have to be of one kind"):
            adapted(query)
    mixed = mp.EpisodeBatch(
        batch.support_x, batch.support_y, floats(batch.query_x), batch.query_y, classes=batch.classes
    )
    with pytest.raises(ValueError, match=r"support_x has bytes, query_x floats: .*\.to\(torch\.uint8\)"):
        mp.Learner(one.source, head="prototypes").hypergradient(mixed)


def test_the_hint_is_right(caplog: pytest.LogCaptureFixture) -> None:
    """What it says to do with floats from 0 to 1 gives what the images give; the log says it once."""
    items._say_raw.cache_clear()
    batch = mp.EpisodeSampler(DATA, 3, 2, 2).batch(0, 2)
    one = learner()
    expected = one.adapt_many(batch.support_x, batch.support_y)(batch.query_x)
    assert not caplog.records
    s, q = floats(batch.support_x), floats(batch.query_x)
    wrong = [one.adapt_many(s, batch.support_y)(q) for _ in range(2)]
    assert len(caplog.records) == 1
    assert not torch.allclose(wrong[0], expected)
    s, q = ((255 * x).round().to(torch.uint8) for x in (s, q))
    assert torch.equal(one.adapt_many(s, batch.support_y)(q), expected)
    caplog.clear()
    items._say_raw.cache_clear()
    done = [
        DATA.preprocess(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (batch.support_x, batch.query_x)
    ]
    torch.testing.assert_close(one.adapt_many(done[0], batch.support_y)(done[1]), expected)
    assert not caplog.records

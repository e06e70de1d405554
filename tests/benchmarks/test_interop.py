"""Episodes beside those of torchmeta and learn2learn: what was measured, and that a difference would be seen."""

from __future__ import annotations

import itertools
import json

import numpy as np
import torch

import metapeft as mp
from benchmarks.interop import BATCH, RESULTS, WAYS, agreement, cells, images, places
from benchmarks.interop_tables import MANY

FOUND = json.loads(RESULTS.read_text(encoding="utf-8"))


def test_what_was_measured() -> None:
    assert FOUND["distribution"]["episodes"] == 100_000
    probabilities = [p for one in FOUND["distribution"]["statistics"].values() for p in one["p"].values()]
    assert len(probabilities) == 30
    assert min(probabilities) > 0.001
    assert set(FOUND["rates"]["ratio"]) == {"torchmeta", "learn2learn"}
    assert min(FOUND["rates"]["ratio"].values()) >= MANY


def test_images_say_which_they_are() -> None:
    data = images(classes=6, each=60, size=3)
    assert torch.equal(places(data.images), torch.arange(360))


def test_our_episodes_agree_with_uniform_ones_and_others_do_not() -> None:
    """Of episodes whose label 0 is never a class of the upper half, and whose support image is never the last."""
    data = images(classes=10, each=4, size=2)
    sampler = mp.EpisodeSampler(data, WAYS, 1, 1)

    def drawn(biased: bool):
        for first in itertools.count(0, BATCH):
            batch = sampler.batch(first + 10**6 * biased, BATCH)
            place = places(batch.support_x)
            keep = (
                (place[:, 0] < 20) & (place[:, 0] % 4 < 3) if biased else torch.ones(BATCH, dtype=torch.bool)
            )
            fields = ("support_x", "support_y", "query_x", "query_y")
            kept = {name: getattr(batch, name)[keep] for name in fields}
            yield mp.EpisodeBatch(**{name: torch.cat([value] * 8)[:BATCH] for name, value in kept.items()})

    counts = {name: cells(drawn(name == "other"), 6400, 10, 4) for name in ("metapeft", "other")}
    assert all(int(one.sum()) == 6400 for one in counts["metapeft"].values())
    found = agreement(counts)
    for name, one in found.items():
        assert one["p"]["metapeft, uniform"] > 1e-4, name
    for name in ("class of the first label", "support image within its class", "support and query image"):
        assert found[name]["p"]["metapeft, other"] < 1e-10, name
    expected = np.bincount(sampler.batch(0, 6400).classes[:, 0].numpy())
    np.testing.assert_array_equal(counts["metapeft"]["class of the first label"], expected)

"""Glyph pairs: the labelled glyph on the left, another class on the right, and episodes that swap them."""

from __future__ import annotations

import pytest
import torch

import metapeft as mp
from metapeft.datasets.side_by_side import companions


@pytest.fixture(scope="module")
def pairs() -> mp.ImageData:
    return mp.load_dataset("glyph-pairs", split="val", per_class=4)


def test_halves_are_squeezed_glyphs_of_the_class_and_of_another(pairs: mp.ImageData) -> None:
    glyphs = mp.load_dataset("glyphs", split="val", per_class=4)
    assert torch.equal(pairs.labels, glyphs.labels)
    assert pairs.classes == glyphs.classes
    squeezed = (glyphs.images[..., ::2].int() + glyphs.images[..., 1::2].int()).float().div(2).round().byte()
    assert torch.equal(pairs.images[..., :14], squeezed)
    other = companions(pairs.labels, 0)
    assert torch.equal(pairs.images[..., 14:], squeezed[other])
    assert bool((pairs.labels[other] != pairs.labels).all())


def test_companions_come_from_all_other_classes_evenly() -> None:
    labels = torch.tensor([0, 1, 2, 3]).repeat(3000)  # classes interleaved
    found = labels[companions(labels, 3)]
    counts = torch.stack([found[labels == c].bincount(minlength=4) for c in range(4)])
    assert bool((counts.diagonal() == 0).all())
    assert bool(((counts - 1000).abs()[~torch.eye(4, dtype=torch.bool)] < 130).all())  # 5 standard errors
    assert not torch.equal(companions(labels, 3), companions(labels, 4))


def test_episodes_swap_all_of_their_images_or_none(pairs: mp.ImageData) -> None:
    sampler = mp.EpisodeSampler(pairs, 3, 1, 2, seed=0, shift=mp.Shift(["plain", "swap"]))
    batch = sampler.batch(0, 200)
    swapped = []
    for i in range(200):
        index = torch.cat([batch.support_index[i], batch.query_index[i]])
        images = torch.cat([batch.support_x[i], batch.query_x[i]])
        as_they_are = pairs.gather(index)
        turned = torch.equal(images, as_they_are.roll(14, -1))
        assert turned or torch.equal(images, as_they_are)
        swapped.append(turned)
    assert 70 < sum(swapped) < 130


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"root": "x"}, "root has no effect on 'glyph-pairs'"),
        ({"size": 9}, "size must be even"),
        ({"size": 6}, "size=6: allowed is a whole number from 8 to"),
    ],
)
def test_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mp.load_dataset("glyph-pairs", split="val", **options)

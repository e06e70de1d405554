"""Coloured glyphs: one set of images under two sets of labels, of which an episode means one."""

from __future__ import annotations

import colorsys

import pytest
import torch
from scipy import stats

import metapeft as mp
from metapeft.datasets.coloured_glyphs import hues

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def data() -> dict[str, mp.ImageData]:
    return {by: mp.load_dataset("coloured-glyphs", split="val", by=by, seed=2) for by in ("shape", "colour")}


def test_images_are_glyphs_times_the_colour_of_their_hue(data: dict[str, mp.ImageData]) -> None:
    glyphs = mp.load_dataset("glyphs", split="val", seed=2)
    assert torch.equal(data["shape"].images, data["colour"].images)
    assert data["shape"].classes == glyphs.classes
    assert torch.equal(data["shape"].labels, glyphs.labels)
    degrees = [int(name.removeprefix("hue ")) for name in data["colour"].classes]
    for place in range(0, 2000, 7):
        hue = degrees[data["colour"].labels[place]]
        colour = torch.tensor(colorsys.hsv_to_rgb(hue / 360, 1, 1))
        expected = glyphs.images[place] * colour[:, None, None]
        assert (data["colour"].images[place] - expected).abs().max() <= 0.5 + 1e-4  # the nearest whole number


def test_hues_are_classes_of_their_own_in_each_split() -> None:
    everything = [hue for split in SPLITS for hue in hues(split)]
    assert sorted(everything) == list(range(0, 360, 10))
    for split in SPLITS:
        assert [b - a for a, b in zip(hues(split), hues(split)[1:])] == [30] * 11
    names = [
        mp.load_dataset("coloured-glyphs", split=split, by="colour", per_class=1).classes for split in SPLITS
    ]
    assert len({name for part in names for name in part}) == 36


def test_shape_and_colour_say_nothing_of_each_other(data: dict[str, mp.ImageData]) -> None:
    shape, colour = data["shape"].labels, data["colour"].labels
    counts = colour.bincount(minlength=12)
    assert counts.max() - counts.min() <= 1  # 2000 images, 12 hues
    table = torch.bincount(shape * 12 + colour, minlength=1200).view(100, 12)
    assert stats.chi2_contingency(table.numpy()).pvalue > 0.001
    place = torch.bincount((torch.arange(2000) % 20) * 12 + colour, minlength=240).view(20, 12)
    assert stats.chi2_contingency(place.numpy()).pvalue > 0.001
    other = mp.load_dataset("coloured-glyphs", split="val", by="colour", seed=3)
    assert not torch.equal(other.labels, colour)


def test_preprocess_is_that_of_the_training_images() -> None:
    train = mp.load_dataset("coloured-glyphs")
    floats = train.preprocess(train.images)
    assert floats.mean((0, 2, 3)).abs().max() < 0.01  # glyphs' numbers, and which of them got which hue
    assert (floats.std((0, 2, 3)) - 1).abs().max() < 0.01


def test_in_a_mixture_the_support_set_says_what_counts(data: dict[str, mp.ImageData]) -> None:
    """In an episode of one kind the other label is random: it differs within a class."""
    parts = {by: mp.EpisodeSampler(one, 5, 3, 5) for by, one in data.items()}
    sampler = mp.MixedSampler(parts)
    batch = sampler.batch(0, 40)
    for kind, index, y in zip(batch.kind.tolist(), batch.support_index, batch.support_y):
        meant, other = ("shape", "colour") if kind == 0 else ("colour", "shape")
        assert len(torch.stack([data[meant].labels[index], y]).unique(dim=1).T) == 5
        assert len(torch.stack([data[other].labels[index], y]).unique(dim=1).T) > 8
    assert batch.support_x.shape == (40, 15, 3, 28, 28)
    assert 10 < int(batch.kind.sum()) < 30


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"root": "x"}, "root has no effect on 'coloured-glyphs', which is embedded"),
        ({"by": "size"}, "by='size': allowed are 'shape' and 'colour'"),
        ({"size": 60}, "size=60: allowed is a whole number from 8 to"),
        ({"split": "all"}, "split must be one of"),
    ],
)
def test_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mp.load_dataset("coloured-glyphs", **{"split": "val", **options})

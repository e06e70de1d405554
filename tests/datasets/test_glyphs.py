"""Glyphs: enough classes, truly different images, and one class a shape."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch

import metapeft as mp
from metapeft.base import counter
from metapeft.datasets import glyph_shapes, glyphs

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def data() -> dict[str, mp.ImageData]:
    return {split: mp.load_dataset("glyphs", split=split) for split in SPLITS}


def test_counts_and_splits(data: dict[str, mp.ImageData]) -> None:
    assert [len(data[split].classes) for split in SPLITS] == [402, 100, 126]
    assert len({name for part in data.values() for name in part.classes}) == 628
    for part in data.values():
        assert part.images.shape == (20 * len(part.classes), 1, 28, 28)
        assert (part.labels.bincount() == 20).all()
    hashes = {split: part.split_hash for split, part in data.items()}
    assert hashes == {"train": "f2e3a31ee4449ac9", "val": "13551d17eed8386e", "test": "443c20e9ce3f64ac"}


def test_images_of_a_class_are_different_and_alike(data: dict[str, mp.ImageData]) -> None:
    images = data["test"].images.double().flatten(1)
    assert len(images.unique(dim=0)) == len(images)
    assert (images.sum(1) > 255 * 10).all()  # none is nearly empty
    classes = images.view(126, 20, -1)
    gaps = torch.cdist(classes, classes, p=1) / 784 + 1e9 * torch.eye(20)
    assert gaps.min() > 255 * 0.01
    soft = torch.nn.functional.avg_pool2d(data["test"].images.float(), 4).flatten(1)
    means = soft.view(126, 20, -1)[:, :10].mean(1)
    found = torch.cdist(soft.view(126, 20, -1)[:, 10:], means).argmin(-1)
    assert (found == torch.arange(126)[:, None]).float().mean() > 0.5  # chance: 1 / 126


def test_preprocess_is_that_of_the_training_images(data: dict[str, mp.ImageData]) -> None:
    floats = data["train"].preprocess(data["train"].images)
    assert abs(float(floats.mean())) < 1e-3  # the constants have five digits
    assert abs(float(floats.std()) - 1) < 1e-3
    assert torch.equal(data["test"].preprocess.mean, data["train"].preprocess.mean)


def test_seed_and_size_change_images_but_no_class() -> None:
    first, second = (mp.load_dataset("glyphs", split="val", seed=seed, per_class=3) for seed in (0, 1))
    assert first.classes == second.classes
    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.images, mp.load_dataset("glyphs", split="val", per_class=3).images)
    whole = mp.load_dataset("glyphs", split="val").images.view(100, 20, 1, 28, 28)
    # more images change no earlier one
    assert torch.equal(first.images.view(100, 3, 1, 28, 28), whole[:, :3])
    assert mp.load_dataset("glyphs", split="val", size=40, per_class=1).images.shape == (100, 1, 40, 40)


@pytest.mark.parametrize(
    "family",
    [
        "AΑА",
        "BΒВ",
        "oOοО0",
        "sSѕ",
        "xXхχ"[:3],
        "cCсС",
        "vV",
        "pPрР"[:2] + "Р",
        "zZ",
        "lIӀ|",
        "ᒥᒯ",
        "سش",
        "ᑑᑟ",
        "ᐋᐙ",
        "+∔",
    ],
)
def test_planted_look_alikes_are_found(family: str) -> None:
    """Letters of several scripts and cases that share a shape; all but the first are left out."""
    pairs = glyph_shapes.look_alikes(family, 0.83)
    assert {later for _, later in pairs} == set(family[1:])
    assert glyph_shapes.distinct("Ж" + family, 0.83) == ["Ж", family[0]]


def test_different_letters_are_no_look_alikes() -> None:
    assert glyph_shapes.look_alikes("AKMXW47", 0.83) == []


def test_a_glyph_that_a_face_lacks_is_not_drawn() -> None:
    assert glyph_shapes.faces_of("一") == []  # DejaVu and STIX have no Han characters
    assert len(glyph_shapes.faces_of("A")) == 16
    everything = [char for part in glyphs.characters().values() for char in part]
    assert all(2 <= len(glyph_shapes.faces_of(char)) <= 16 for char in everything)
    assert all(unicodedata.name(char) for char in everything)


def test_no_two_classes_are_look_alikes_be_one_of_them_shifted_by_a_pixel() -> None:
    everything = sorted(char for part in glyphs.characters().values() for char in part)
    assert glyph_shapes.look_alikes(everything, 0.83) == []


@pytest.mark.slow  # renders 25,000 glyphs
def test_the_shipped_list_is_what_the_rule_gives() -> None:
    kept = glyph_shapes.distinct(glyph_shapes.candidates(), 0.83)
    order = counter.draw(counter.root(0), np.array([len(kept)]), len(kept))[0]
    ends = [round(len(kept) * share) for share in (0.64, 0.8)]
    parts = [sorted(kept[place] for place in piece) for piece in np.split(order, ends)]
    assert parts == [list(glyphs.characters()[split]) for split in SPLITS]

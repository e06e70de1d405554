"""Omniglot's drawings side by side: what is left, what is right, and the options of the reader below."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metapeft as mp
from metapeft.datasets import omniglot
from metapeft.datasets.side_by_side import companions, side_by_side
from tests.conftest import real_data
from tests.datasets.test_omniglot import SMALL, as_folders


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(omniglot, "characters", lambda: SMALL)
    return as_folders(tmp_path / "o")


def check(pairs: mp.ImageData, drawings: mp.ImageData, seed: int) -> None:
    """Left half: every drawing, squeezed to the mean of each two columns; right half: one of another class."""
    half = drawings.images.shape[-1] // 2
    columns = drawings.images.double()
    squeezed = ((columns[..., ::2] + columns[..., 1::2]) / 2).round().byte()
    other = companions(drawings.labels, seed)
    assert pairs.classes == drawings.classes
    assert pairs.split == drawings.split
    assert torch.equal(pairs.labels, drawings.labels)
    assert torch.equal(pairs.images[..., :half], squeezed)
    assert torch.equal(pairs.images[..., half:], squeezed[other])
    assert bool((pairs.labels[other] != pairs.labels).all())
    assert torch.equal(pairs.preprocess.mean, drawings.preprocess.mean)


@pytest.mark.parametrize(
    "options",
    [{}, {"size": 16, "rotations": False}, {"split_by": "characters", "validation": 1}, {"seed": 3}],
)
def test_halves_are_squeezed_drawings(small: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    monkeypatch.setattr(omniglot, "_TRAINING_CHARACTERS", 3)
    own = {name: value for name, value in options.items() if name != "seed"}
    drawings = mp.load_dataset("omniglot", small, **own)
    check(mp.load_dataset("omniglot-pairs", small, **options), drawings, options.get("seed", 0))


def test_large_data_is_squeezed_in_pieces() -> None:
    images = torch.arange(5000 * 4).remainder(251).byte().view(5000, 1, 1, 4)
    data = mp.ImageData(images, torch.arange(5000) % 2, ["a", "b"])
    check(side_by_side(data, "pairs", 1), data, 1)


def test_episodes_swap_all_of_their_images_and_know_it(small: Path) -> None:
    data = mp.load_dataset("omniglot-pairs", small, size=20)
    sampler = mp.EpisodeSampler(data, 3, 2, 4, shift=mp.Shift(["plain", "swap"]))
    batch = sampler.batch(0, 60)
    for turned, episode in zip(batch.kind.tolist(), (batch.episode(i) for i in range(60))):
        as_they_are = data.gather(episode.query_index)
        assert torch.equal(episode.query_x, as_they_are.roll(10, -1) if turned else as_they_are)
    assert 15 < int(batch.kind.sum()) < 45


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 9}, "size must be even"),
        ({"size": 106}, "size=106: allowed is a whole number from 8 to 105"),
        ({"seed": -1}, "seed=-1: allowed"),
        ({"split_by": "age"}, "split_by must be 'vinyals' or 'characters'"),
        ({"per_class": 3}, "data set 'omniglot-pairs' has no option 'per_class': it has split_by, size, rot"),
    ],
)
def test_refused(small: Path, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mp.load_dataset("omniglot-pairs", small, **options)


def test_real_drawings() -> None:
    real_data("omniglot-py")
    options = {"split": "test", "rotations": False}
    check(mp.load_dataset("omniglot-pairs", **options), mp.load_dataset("omniglot", **options), 0)

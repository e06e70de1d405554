"""Shifts: one an episode, shared by support and query, of kinds that belong to the split."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.base import counter
from metapeft.episodes.shift import OF_SPLIT
from metapeft.episodes.shift_kinds import EXACT, KINDS
from tests.episodes.helpers import same


def blobs(split: str = "train", channels: int = 1, side: int = 16, white: bool = False) -> mp.ImageData:
    """Sixty pictures of the same bright square, so that images differ only by what the shift does."""
    images = torch.zeros(60, channels, side, side, dtype=torch.uint8)
    images[..., 5:11, 4:9] = 255 if white else 200
    return mp.ImageData(images, torch.arange(60) % 3, ["a", "b", "c"], split)


def test_every_kind_belongs_to_one_split() -> None:
    listed = list(itertools.chain(*OF_SPLIT.values()))
    assert sorted([*listed, "plain", "swap"]) == sorted(KINDS)  # for mixtures of one's own
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_true_means_the_kinds_of_the_split(split: str) -> None:
    sampler = mp.EpisodeSampler(blobs(split), 3, 1, 3, shift=True)
    assert sampler.shift.kinds == OF_SPLIT[split]
    assert mp.Protocol.of(sampler, 5).shift == "+".join(OF_SPLIT[split])


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"plain"}))
@pytest.mark.parametrize("channels", [1, 3])
def test_support_and_query_share_the_shift_and_tasks_differ(kind: str, channels: int) -> None:
    batch = mp.EpisodeSampler(blobs(channels=channels), 3, 2, 2, shift=mp.Shift([kind])).batch(0, 12)
    images = torch.cat([batch.support_x, batch.query_x], dim=1)
    assert images.dtype == torch.uint8
    if kind not in ("noise", "salt"):  # the same picture comes out the same everywhere in an episode
        assert (images == images[:, :1]).all()
    else:  # anew for each image
        assert not torch.equal(images[0, 0], images[0, 1])
    assert (images != blobs(channels=channels).images[0]).any(dim=(1, 2, 3, 4)).all()
    if kind not in ("invert", "noise", "salt", "swap"):
        assert len(images[:, 0].flatten(1).unique(dim=0)) > (2 if kind == "pixelate" else 4)


def test_kinds_are_drawn_about_equally_often() -> None:
    inverted = (
        mp.EpisodeSampler(blobs(), 3, 1, 1, shift=mp.Shift(["invert", "thicken"])).batch(0, 2000).support_x
    )
    share = (inverted[:, 0, 0, 0, 0] == 255).float().mean()
    assert abs(float(share) - 0.5) < 0.05  # 4.5 standard errors


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_task_is_shifted_the_same_whatever_stands_beside_it(kind: str) -> None:
    sampler = mp.EpisodeSampler(blobs(), 3, 1, 2, shift=mp.Shift([kind, "invert"]))
    assert same(sampler.batch(0, 9).tasks(slice(4, 7)), sampler.batch(4, 3))


def test_what_kinds_do_to_a_square() -> None:
    """Each by the property it is named for, on a white square of 6x5 pixels."""
    picture = blobs(white=True).images[:1].float()[None]
    key = counter.root(1)
    found = {name: kind(picture, key) for name, kind in KINDS.items()}
    ink = {name: float(image.clamp(0, 255).sum() / 255) for name, image in found.items()}
    assert ink["rotate"] == pytest.approx(30, rel=0.1)  # a turn keeps the area, up to interpolation
    assert ink["wave"] == pytest.approx(30, rel=0.1)
    assert ink["shear"] == pytest.approx(30, rel=0.1)
    assert ink["blur"] == pytest.approx(30, rel=0.1)
    assert 0.4 * 30 < ink["stretch"] < 0.75 * 30
    assert ink["thicken"] > 30 + 0.6 * (8 * 7 - 30) - 0.1
    assert ink["outline"] == pytest.approx(8 * 7 - 4 * 3)  # the ring inside and the ring outside
    assert torch.equal(found["invert"], 255 - picture)
    assert torch.equal(found["plain"], picture)
    half = picture.shape[-1] // 2
    assert torch.equal(found["swap"][..., half:], picture[..., :half])
    assert torch.equal(found["swap"][..., :half], picture[..., half:])
    changed = (found["salt"] != picture).float().mean()
    assert 0 < changed < 0.2
    assert len(found["pixelate"].unique()) < 30
    low, high = found["contrast"].min(), found["contrast"].max()
    assert 0 <= low < high <= 255
    assert 0.3 * 255 - 1 <= high - low <= 0.7 * 255 + 1


def test_a_shift_of_ones_own() -> None:
    seen: list[Tensor] = []

    def darker(images: Tensor, seeds: Tensor) -> Tensor:
        seen.append(seeds)
        assert images.shape[:2] == (4, 9)
        return images // 2

    sampler = mp.EpisodeSampler(blobs(), 3, 1, 2, shift=darker)
    assert int(sampler.batch(0, 4).support_x.max()) == 100
    assert seen[0].dtype == torch.int64
    assert len(seen[0].unique()) == 4
    assert bool((seen[0] >= 0).all())
    assert "darker" in mp.Protocol.of(sampler, 1).shift


def test_a_shift_that_breaks_the_contract_is_refused() -> None:
    for function, got in (
        (lambda x, s: x.float(), "torch.float32"),
        (lambda x, s: x[:, :1], "\\(2, 1, 1"),
        (lambda x, s: None, "None"),
    ):
        with pytest.raises(ValueError, match=f"shift must return torch.uint8 .* not .*{got}"):
            mp.EpisodeSampler(blobs(), 3, 1, 1, shift=function).batch(0, 2)


def test_unknown_kinds_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kinds must be a list of names among blur.* not \['blurr'\]"):
        mp.Shift(["blurr"])
    for bad in ([], "blur"):
        with pytest.raises(ValueError, match="kinds must be a list of names"):
            mp.Shift(bad)
    with pytest.raises(
        ValueError, match="shift=True knows kinds for the splits train, val, test, not 'mine'"
    ):
        mp.EpisodeSampler(blobs("mine"), 3, 1, 1, shift=True)


@pytest.mark.parametrize("kind", sorted(EXACT))
def test_what_stays_whole_is_the_same_without_floats(kind: str) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(2, 2, 1, 8, 8)
    keys = counter.words(counter.root(0), 2)[0]
    assert torch.equal(KINDS[kind](images, keys).float(), KINDS[kind](images.float(), keys))

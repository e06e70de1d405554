"""Augmentation: each image on its own, and nothing but what was asked for."""

from __future__ import annotations

import pytest
import torch

import metapeft as mp


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.arange(2 * 50 * 2 * 6 * 5).remainder(251).to(torch.uint8).view(2, 50, 2, 6, 5)
    return images, torch.arange(100).view(2, 50) * 7


def test_crops_are_windows_of_the_padded_image() -> None:
    images, seeds = pictures()
    found = mp.Augment(crop=2)(images, seeds)
    padded = torch.nn.functional.pad(images.flatten(0, 1), (2, 2, 2, 2))
    windows = padded.unfold(2, 6, 1).unfold(3, 5, 1)  # (100, 2, 5, 5, 6, 5)
    match = (windows == found.flatten(0, 1)[:, :, None, None]).all(dim=5).all(dim=4).all(dim=1)
    assert match.any(dim=(1, 2)).all()
    assert match.any(dim=0).sum() > 15  # of 25 windows


def test_flips_come_half_of_the_time() -> None:
    images, seeds = pictures()
    found = mp.Augment(flip=True)(images, seeds)
    kept = (found == images).all(dim=(2, 3, 4))
    flipped = (found == images.flip(-1)).all(dim=(2, 3, 4))
    assert (kept ^ flipped).all()
    assert 30 < int(flipped.sum()) < 70  # 4 standard errors


@pytest.mark.parametrize(
    ("options", "mean", "spread"), [({"brightness": 0.3}, 0.3, 0.0), ({"contrast": 0.3}, 0.0, 0.3)]
)
def test_light_changes_within_its_bounds(options: dict[str, float], mean: float, spread: float) -> None:
    images = (torch.arange(30).view(6, 5) * 2 + 80).to(torch.uint8).expand(1, 200, 1, 6, 5)
    found = mp.Augment(**options)(images, torch.arange(200).view(1, 200)).double().flatten(2)  # type: ignore[arg-type]
    old = images.double().flatten(2)
    means, spreads = found.mean(2) / old.mean(2), found.std(2) / old.std(2)
    for ratio, bound in ((means, mean), (spreads, spread)):
        assert (ratio - 1).abs().max() < bound + 0.02  # rounding to whole grey values
        assert (ratio - 1).abs().max() >= 0.9 * bound


def test_an_image_is_changed_the_same_whatever_stands_beside_it() -> None:
    images, seeds = pictures()
    augment = mp.Augment(crop=1, flip=True, brightness=0.2, contrast=0.2)
    assert torch.equal(augment(images, seeds)[1:, 20:30], augment(images[1:, 20:30], seeds[1:, 20:30]))
    assert augment.name == "crop 1+brightness 0.2+contrast 0.2+flip"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "changes nothing"),
        ({"crop": -1}, "crop=.*: allowed is a whole number of at least 0"),
        ({"crop": 1.5}, "crop=.*: allowed is a whole number of at least 0"),
        ({"brightness": float("nan")}, "brightness=.*: allowed is a finite number"),
        ({"contrast": -0.1}, "contrast=.*: allowed is a finite number"),
    ],
)
def test_bad_strengths_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.Augment(**options)  # type: ignore[arg-type]

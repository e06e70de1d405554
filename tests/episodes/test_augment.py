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


def photos() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(90, 160, (1, 60, 3, 12, 10), generator=random, dtype=torch.uint8)
    return images, torch.arange(60).view(1, 60) * 7


def test_saturation_changes_the_distance_from_grey() -> None:
    images, seeds = photos()
    found = mp.Augment(saturation=0.4)(images, seeds)[0].double()
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    old = images[0].double()
    distance, before = found - (luma * found).sum(1, keepdim=True), old - (luma * old).sum(1, keepdim=True)
    ratio = (distance * before).sum((1, 2, 3)) / before.square().sum((1, 2, 3))
    assert ratio.min() > 0.59
    assert ratio.min() < 0.7
    assert 1.3 < ratio.max() < 1.41
    torch.testing.assert_close(
        distance, ratio.view(-1, 1, 1, 1) * before, rtol=0, atol=1.0
    )  # whole grey values
    with pytest.raises(ValueError, match=r"saturation=0.4 is about colour images"):
        mp.Augment(saturation=0.4)(images[:, :, :1], seeds)


def test_windows_are_resized_parts_of_the_image() -> None:
    """Of an image that is a ramp, a window is a ramp too: its slope says how large it was, its values where."""
    height, width = 48, 40
    ramp = torch.stack(
        [torch.arange(height).view(-1, 1).expand(-1, width), torch.arange(width).expand(height, -1)]
    )
    images = (4 * ramp).to(torch.uint8).expand(1, 80, 2, height, width)
    found = mp.Augment(window=(0.25, 0.5))(images, torch.arange(80).view(1, 80))[0].double() / 4
    rows = (found[:, 0, -6] - found[:, 0, 5]).mean(-1) / (height - 11) * height
    columns = (found[:, 1, :, -6] - found[:, 1, :, 5]).mean(-1) / (width - 11) * width
    area, ratio = rows * columns / (height * width), columns / rows
    assert 0.23 < area.min() < 0.3
    assert 0.45 < area.max() < 0.53
    assert 0.7 < ratio.min() < 0.85
    assert 1.2 < ratio.max() < 1.4
    assert found[:, 0].min() < 1
    assert found[:, 0].max() > height - 2
    same = mp.Augment(window=(1.0, 1.0))(images, torch.arange(80).view(1, 80))
    assert (same.double() - images.double()).abs().mean() < 30  # only the ratio is another


def test_settings_build_it_again() -> None:
    images, seeds = photos()
    for options in ({"crop": 1}, {"window": (0.3, 0.9), "flip": True, "saturation": 0.2}):
        augment = mp.Augment(**options)  # type: ignore[arg-type]
        again = mp.Augment(**augment.settings())  # type: ignore[arg-type]
        assert torch.equal(augment(images, seeds), again(images, seeds))
    assert set(mp.Augment(crop=1).settings()) == {"crop", "flip", "brightness", "contrast"}
    assert mp.Augment(window=(0.3, 0.9), flip=True).name == "window 0.3-0.9+flip"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "changes nothing"),
        ({"crop": -1}, "crop=.*: allowed is a whole number of at least 0"),
        ({"crop": 1.5}, "crop=.*: allowed is a whole number of at least 0"),
        ({"brightness": float("nan")}, "brightness=.*: allowed is a finite number"),
        ({"contrast": -0.1}, "contrast=.*: allowed is a finite number"),
        ({"saturation": -0.1}, "saturation=.*: allowed is a finite number"),
        ({"window": (0.5, 0.2)}, "window=.*: allowed are two shares"),
        ({"window": 0.5}, "window=.*: allowed are two shares"),
        ({"window": (0.5, 1.0), "crop": 2}, "both cut a window"),
    ],
)
def test_bad_strengths_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.Augment(**options)  # type: ignore[arg-type]

"""ImageData, its preprocessing and rotations as classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.datasets.images import Preprocess, split_hash, statistics


def images(count: int = 6, channels: int = 1, height: int = 4, width: int = 4) -> torch.Tensor:
    return (
        torch.arange(count * channels * height * width)
        .remainder(256)
        .to(torch.uint8)
        .view(count, channels, height, width)
    )


def test_gather_takes_any_shape_of_index() -> None:
    data = mp.ImageData(images(), [0, 0, 1, 1, 2, 2], ["a", "b", "c"])
    index = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(data.gather(index), data.images[index])
    assert torch.equal(data.gather(torch.tensor(3)), data.images[3])
    assert len(data) == 6
    assert data.labels.dtype == torch.int64
    assert data.split == "train"
    assert "6 images 1x4x4, 3 classes" in repr(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preprocess_standardises_uint8_and_lets_floats_pass(dtype: torch.dtype) -> None:
    data = mp.ImageData(images(50, 3, 8, 8), [0] * 50, ["a"])
    module = data.preprocess.to(dtype)
    found = module(data.images)
    assert found.dtype == dtype
    assert found.mean(dim=(0, 2, 3)).abs().max() < 1e-6
    assert (found.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    floats = torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert module(floats) is floats
    assert module(data.gather(torch.tensor([[0, 1]]))).shape == (1, 2, 3, 8, 8)
    assert not list(module.parameters())


def test_given_statistics_are_used() -> None:
    data = mp.ImageData(images(channels=2), [0] * 6, ["a"], mean=[0.5, 0.25], deviation=[0.5, 2.0])
    assert torch.allclose(
        data.preprocess(torch.full((2, 1, 1), 255, dtype=torch.uint8)).flatten(), torch.tensor([1.0, 0.375])
    )


def test_statistics_are_exact_and_survive_a_constant_channel() -> None:
    mean, deviation = statistics(images(50, 3, 8, 8))
    floats = images(50, 3, 8, 8).double() / 255
    assert mean == pytest.approx(floats.mean(dim=(0, 2, 3)).tolist(), rel=1e-12)
    assert deviation == pytest.approx(floats.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-12)
    assert statistics(torch.zeros(3, 1, 2, 2, dtype=torch.uint8)) == ([0.0], [1.0])


def test_the_hash_depends_on_split_names_and_order() -> None:
    hashes = {
        split_hash(*case) for case in (("train", "ab"), ("test", "ab"), ("train", "ba"), ("train", ["ab"]))
    }
    assert len(hashes) == 4
    assert (
        mp.ImageData(images(), [0] * 6, ["a", "b"]).split_hash
        == split_hash("train", ["a", "b"])
        == "c9064b178fc261b8"
    )


def test_moving_the_images_moves_the_episodes() -> None:
    data = mp.ImageData(images(), [0] * 6, ["a"])
    moved = data.to("meta")
    assert moved.gather(torch.tensor([1])).device.type == "meta"
    assert data.images.device.type == "cpu"
    assert moved.classes == data.classes


def test_rotations_are_classes_of_their_own() -> None:
    data = mp.ImageData(images(), [0, 0, 1, 1, 2, 2], ["a", "b", "c"])
    turned = mp.Rotated(data)
    assert len(turned) == 24
    assert len(turned.classes) == 12
    everything = turned.gather(torch.arange(24).view(4, 6))
    for turn in range(4):
        assert torch.equal(everything[turn], data.images.rot90(turn, (-2, -1)))
    assert turned.classes[4] == "b/rot090"
    assert turned.labels[6 + 3] == 4
    assert turned.split_hash != data.split_hash
    assert torch.equal(data.images, images())  # what lies below is not changed
    assert torch.equal(turned.preprocess.mean, data.preprocess.mean)
    with pytest.raises(ValueError, match="turns already, such as 'a/rot000'"):
        mp.Rotated(turned)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rotations need square images, not 4x5"):
        mp.Rotated(mp.ImageData(images(width=5), [0] * 6, ["a"]))


GOOD: dict[str, Any] = {"images": images(), "labels": [0, 0, 1, 1, 2, 2], "classes": ["a", "b", "c"]}
BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"images": images().float()},
        "images must be uint8 from 0 to 255, not torch.float32: floats in 0..1 need",
    ),
    ({"images": images().float() / 0}, "images contain NaN"),
    ({"images": images().long()}, "images must be uint8 from 0 to 255, not torch.int64"),
    ({"images": images()[:, 0]}, r"images must be \(images, channels, height, width\).*grey images need"),
    ({"images": images()[:0]}, "none of them 0"),
    ({"images": images().numpy()}, "images must be a torch tensor, not ndarray; try torch.from_numpy"),
    ({"labels": [0, 1]}, r"labels must be \(6,\), one for each image, not \(2,\)"),
    ({"labels": [0.0] * 6}, "labels must be integers, not torch.float32"),
    ({"labels": [0, 0, 1, 1, 2, 3]}, "labels must be places in classes, 0 to 2, but run from 0 to 3"),
    ({"labels": [-1, 0, 1, 1, 2, 2]}, "but run from -1 to 2"),
    ({"classes": ["a", "b", "a"]}, "classes holds 'a' twice"),
    ({"classes": [1, 2, 3]}, "classes must be names"),
    ({"mean": [0.5]}, "mean and deviation belong together"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_are_refused_in_a_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.ImageData(**{**GOOD, **change})


@pytest.mark.parametrize("deviation", [[0.0], [float("nan")], [1.0, 1.0]])
def test_bad_deviations_are_refused(deviation: list[float]) -> None:
    with pytest.raises(ValueError, match="deviation must hold one positive number a channel"):
        Preprocess([0.5], deviation)

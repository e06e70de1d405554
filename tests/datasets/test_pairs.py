"""Other people's data sets, and tensors, as data to draw episodes from."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import metapeft as mp

PIXELS = torch.randint(0, 256, (6, 3, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = [2, 0, 2, 0, 5, 5]


def picture(i: int) -> Image.Image:
    return Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy())


def encoded(i: int) -> bytes:
    stream = io.BytesIO()
    picture(i).save(stream, "png")
    return stream.getvalue()


class Listed(list[Any]):
    """A list of items with what a data set has beside them."""

    def __init__(self, items: list[Any], **more: Any) -> None:
        super().__init__(items)
        self.__dict__.update(more)


FEATURES = {"image": None, "label": SimpleNamespace(names=list("abcdef"))}
SETS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "tensors": (TensorDataset(PIXELS, torch.tensor(LABELS)), ("0", "2", "5")),
    "floats": (TensorDataset(PIXELS / 255, torch.tensor(LABELS)), ("0", "2", "5")),
    "an image folder": (
        Listed([(picture(i), LABELS[i]) for i in range(6)], classes=list("abcdef")), ("a", "c", "f"),
    ),
    "arrays": (
        [(PIXELS[i].permute(1, 2, 0).numpy(), np.int64(LABELS[i])) for i in range(6)], ("0", "2", "5"),
    ),
    "a table": (
        Listed([{"image": picture(i), "label": LABELS[i]} for i in range(6)], features=FEATURES), ("a", "c", "f"),
    ),
    "a table, not decoded": (
        Listed([{"image": {"bytes": encoded(i)}, "label": LABELS[i]} for i in range(6)], features=FEATURES),
        ("a", "c", "f"),
    ),
    "names": ([(picture(i), "abcdef"[LABELS[i]]) for i in range(6)], ("a", "c", "f")),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETS)
def test_every_kind_gives_the_same_images(kind: str) -> None:
    dataset, classes = SETS[kind]
    found = mp.ImageData.from_dataset(dataset, size=10, split="val")
    assert torch.equal(found.images, PIXELS)
    assert found.classes == classes
    assert found.labels.tolist() == [1, 0, 1, 0, 2, 2]
    assert mp.ImageData.from_dataset(dataset, size=8, channels=1).images.shape == (6, 1, 8, 8)
    assert mp.EpisodeSampler(found, 3, 1, 1).batch(0, 4).query_x.shape == (4, 3, 3, 10, 10)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter([]), "has no length or no items by number"),
        ([], "is empty"),
        ([3], "item 0 of the data set is a int"),
        ([{"text": "a", "label": 1}], "item 0 of the data set has the columns text, label"),
        ([(PIXELS[0], 1.5)], r"the label of item 0 is 1.5"),
        ([("nowhere.png", 0)], "nowhere.png is no whole image"),
        ([(PIXELS[0].float(), 0)], "has values from 0 to 254: floats must lie in 0 to 1"),
        ([(PIXELS[0].short(), 0)], r"is int16 \(10, 10, 3\): uint8 of 1 or 3 channels"),
        ([(PIXELS, 0)], "a PIL image, or pixels"),
    ],
)
def test_other_things_are_refused(dataset: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.ImageData.from_dataset(dataset)


def test_features_make_episodes_that_are_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(6, 8, generator=generator)
    y = torch.arange(6).repeat_interleave(20)
    features = centres[y] + torch.randn(120, 8, generator=generator)
    data = mp.data(features, y, split="test", name="mine")
    batch = mp.EpisodeSampler(data, 3, 1, 4, seed=2).batch(0, 3)
    assert torch.equal(batch.query_x, features[batch.query_index])
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
    learner = mp.methods.centroids(body, preprocess=data.preprocess)
    result = mp.evaluate(learner, mp.EpisodeSampler(data, 3, 5, 10), episodes=40)
    assert result.accuracy > 0.9
    assert "mine/test@" in str(result.protocol)


def test_tables_of_tokens_and_names() -> None:
    data = mp.data({"ids": np.arange(12).reshape(4, 3), "mask": torch.ones(4, 3)}, ["b", "a", "b", "a"])
    assert data.classes == ("a", "b")
    batch = mp.EpisodeSampler(data, 2, 1, 1).batch(0, 2)
    assert batch.support_x["ids"].shape == (2, 2, 3)
    assert repr(data) == "TensorData(data, train: 4 rows, 2 classes)"
    assert mp.data(torch.zeros(2, 1), [7, 3], classes=None).classes == ("3", "7")


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.zeros(3, 2), [0, 1], {}, "x has 3 rows and y 2"),
        (torch.tensor([[float("nan")]]), [0], {}, "x has NaN or infinity"),
        (torch.zeros(2, 2), [0.5, 1.0], {}, "y must hold a whole number or a name"),
        (torch.zeros(2, 2), [0, 2], {"classes": ["a", "b"]}, "y runs from 0 to 2, but classes has 2 names"),
        (torch.zeros(2, 2), ["a", "c"], {"classes": ["a", "b"]}, "y has class 'c'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(x: Any, y: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.data(x, y, **options)

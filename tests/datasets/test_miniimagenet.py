"""miniImageNet, on small images of our own and on the real ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metapeft as mp
from metapeft.datasets import miniimagenet
from tests.conftest import real_data

CLASSES = {"train": ["n01", "n02", "n03"], "val": ["n04"], "test": ["n05", "n06"]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images a class, class by class; those of class n0k have the value 20 k + 4 i everywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(miniimagenet, "class_names", CLASSES.__getitem__)
    return as_folder(tmp_path / "miniimagenet")


def as_folder(folder: Path) -> Path:
    """What the fixture `root` says, without what it patches."""
    (folder / "images").mkdir(parents=True)
    for split, names in CLASSES.items():
        rows = [("filename", "label")]
        for name in names:
            for i in range(4):
                picture = np.full((84, 84, 3), 20 * int(name[1:]) + 4 * i, dtype=np.uint8)
                Image.fromarray(picture).save(folder / "images" / f"{name}_{i}.jpg", quality=95)
                rows.append((f"{name}_{i}.jpg", name))
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return folder


def edit(root: Path, split: str, old: str, new: str) -> None:
    file = root / f"{split}.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("size", [84, 32])
def test_images_stand_in_the_order_of_the_file(root: Path, size: int) -> None:
    data = mp.load_dataset("miniimagenet", root, "train", size=size, per_class=4)
    assert data.images.shape == (12, 3, size, size)
    assert data.classes == ("n01", "n02", "n03")
    value = 20 * (data.labels + 1) + 4 * torch.arange(12).remainder(4)
    assert (data.images.long() - value.view(-1, 1, 1, 1)).abs().max() <= 1  # JPEG
    again = mp.load_dataset("miniimagenet", root, size=size, per_class=4)  # cached
    assert torch.equal(again.images, data.images)


def test_missing_things_are_named(root: Path) -> None:
    with pytest.raises(
        mp.DataError, match="lists 4 images of class n01 instead of 600; per_class=None takes"
    ):
        mp.load_dataset("miniimagenet", root)
    (root / "images" / "n02_1.jpg").unlink()
    (root / "images" / "n02_3.jpg").unlink()
    with pytest.raises(
        mp.DataError,
        match=r"2 of 12 images of the train split are missing from .*images, the first is n02_1.jpg",
    ):
        mp.load_dataset("miniimagenet", root, per_class=None)
    (root / "val.csv").unlink()
    with pytest.raises(mp.DataError, match=r"there is no .*val.csv: put Ravi and Larochelle's val.csv there"):
        mp.load_dataset("miniimagenet", root, "val")
    (root / "images").rename(root / "pictures")
    with pytest.raises(
        mp.DataError, match=r"there is no folder .*images: put the images of miniImageNet there"
    ):
        mp.load_dataset("miniimagenet", root, "test", per_class=4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "n01_0.jpg,n01",
            "n01_0.jpg,n05",
            r"of 3 classes 0 are missing \(none\), and 1 are foreign \(n05\)",
        ),
        ("n01_0.jpg,n01", "n01_0.jpg,n02", "lists 5 images of class n02 instead of 4"),
        ("n01_0.jpg,n01", "n01_1.jpg,n01", "lists a file name twice"),
        ("filename,label", "name,class", "must begin with the columns filename,label"),
    ],
)
def test_a_wrong_split_file_is_refused(root: Path, old: str, new: str, message: str) -> None:
    edit(root, "train", old, new)
    with pytest.raises(mp.DataError, match=message):
        mp.load_dataset("miniimagenet", root, per_class=4)


def test_the_file_of_another_split_is_refused(root: Path) -> None:
    (root / "train.csv").write_bytes((root / "test.csv").read_bytes())
    with pytest.raises(mp.DataError, match=r"3 are missing .*n01, n02, n03.*, and 2 are foreign .*n05, n06"):
        mp.load_dataset("miniimagenet", root, per_class=4)


def test_a_truncated_image_is_refused_by_name(root: Path) -> None:
    file = root / "images" / "n06_2.jpg"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(mp.DataError, match=r"n06_2.jpg is no whole image"):
        mp.load_dataset("miniimagenet", root, "test", per_class=4)
    assert not list((root.parent / "cache").rglob("*.*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 4}, "size=4: allowed is a whole number from 8 to 2048"), ({"split": "x"}, "split must be")],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.load_dataset("miniimagenet", **options)  # type: ignore[arg-type]


def test_the_shipped_classes_are_apart() -> None:
    names = {split: miniimagenet.class_names(split) for split in ("train", "val", "test")}
    assert [len(part) for part in names.values()] == [64, 16, 20]
    assert len(set().union(*names.values())) == 100


@pytest.mark.slow  # decodes 9,600 images where they are not in the cache yet
def test_real_validation_images() -> None:
    real_data("miniimagenet")
    data = mp.load_dataset("miniimagenet", split="val")
    assert data.images.shape == (9600, 3, 84, 84)
    assert (data.labels.bincount() == 600).all()
    assert data.split_hash == "9d966a5c43a73417"
    batch = mp.EpisodeSampler(data, 5, 1, 15, seed=0).batch(0, 4)
    assert batch.query_x.shape == (4, 75, 3, 84, 84)
    assert data.preprocess(batch.query_x).mean().abs() < 0.3

"""CIFAR-FS, FC100, tieredImageNet and CUB: small files of the forms that their users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metapeft as mp
from metapeft.cli import run
from metapeft.datasets import few_shot_sets
from tests.datasets.forms import writers
from tests.datasets.forms.writers import png

SPLITS = ("train", "val", "test")
EACH = 3


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def noise(count: int, size: int = 8) -> writers.Pixels:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def cifar(root: Path, name: str) -> Path:
    """MetaOptNet's and learn2learn's pickles, of rows as CIFAR-100 has them, with numbers as labels."""
    stem = {"cifar-fs": "CIFAR_FS", "fc100": "FC100"}[name]
    for split, count in few_shot_sets.facts(name).counts.items():
        images = noise(count * EACH, 32).transpose(0, 3, 1, 2).reshape(-1, 3072)
        labels = [i // EACH for i in range(count * EACH)]
        writers.dump(root / f"{stem}_{split}.pickle", {"data": images, "labels": labels}, 2)
    return root


def tiered(root: Path) -> Path:
    """Ren's pickles: encoded images, and labels with names beside them."""
    first = 0
    for split, count in few_shot_sets.facts("tieredimagenet").counts.items():
        images = [np.frombuffer(png(image), np.uint8)[:, None] for image in noise(EACH)] * count
        names = [f"n{number:08d}" for number in range(first, first + count)]
        first += count
        labels = {"label_specific": np.arange(count).repeat(EACH), "label_specific_str": names}
        writers.dump(root / "tiered-imagenet" / f"{split}_images_png.pkl", images, 2)
        writers.dump(root / "tiered-imagenet" / f"{split}_labels.pkl", labels, 2)
    return root / "tiered-imagenet"


def cub(root: Path) -> Path:
    """The folders of CUB_200_2011.tgz."""
    images = [png(image) for image in noise(EACH)]
    for number in range(1, 201):
        folder = root / "CUB_200_2011" / "images" / f"{number:03d}.Bird"
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            (folder / f"Bird_{i:04d}.jpg").write_bytes(image)
    return root


MADE: dict[str, Any] = {
    "cifar-fs": lambda root: cifar(root, "cifar-fs"),
    "fc100": lambda root: cifar(root, "fc100"),
    "tieredimagenet": tiered,
    "cub": cub,
}
COUNTS = {
    "cifar-fs": (64, 16, 20),
    "fc100": (60, 20, 20),
    "tieredimagenet": (351, 97, 160),
    "cub": (100, 50, 50),
}


@pytest.mark.parametrize("name", MADE)
def test_numbers_of_classes_and_what_is_incomplete(name: str, tmp_path: Path) -> None:
    root = MADE[name](tmp_path)
    for split, count in zip(SPLITS, COUNTS[name], strict=True):
        data = mp.load_dataset(name, root, split, size=8, complete=False)
        assert (len(data.classes), len(data)) == (count, count * EACH)
        assert (data.labels.bincount() == EACH).all()
    with pytest.raises(mp.DataError, match="complete=False takes what is there"):
        mp.load_dataset(name, root, size=8)


def test_published_classes_share_none() -> None:
    for name in ("cifar-fs", "fc100"):
        classes = few_shot_sets.facts(name).classes
        assert [len(classes[split]) for split in SPLITS] == list(COUNTS[name])
        assert len({one for split in SPLITS for one in classes[split]}) == 100
    own = {split: set(few_shot_sets.facts("fc100").classes[split]) for split in SPLITS}
    assert own["test"] >= {"baby", "dolphin", "bee", "fox"}  # four superclasses, each whole
    assert own["val"] >= {"bear", "camel", "crab", "mouse"}


def test_rows_of_cifar_are_red_then_green_then_blue(tmp_path: Path) -> None:
    image = np.zeros((1, 3, 32, 32), np.uint8)
    image[0, 0], image[0, 2, 5, 7] = 200, 90
    counts = few_shot_sets.facts("cifar-fs").counts["train"]
    writers.dump(
        tmp_path / "CIFAR_FS_train.pickle",
        {"data": image.reshape(1, -1).repeat(counts, 0), "labels": list(range(counts))},
    )
    data = mp.load_dataset("cifar-fs", tmp_path, complete=False)
    assert np.array_equal(data.images[0].numpy(), image[0])
    assert data.classes[:2] == ("train/000", "train/001")


@pytest.mark.parametrize("sub", ["cifar-fs", "fc100"])
def test_torchmeta_keeps_one_file_for_all_of_cifar(sub: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    classes = few_shot_sets.facts(sub).classes
    (tmp_path / "cifar100" / sub).mkdir(parents=True)
    with h5py.File(tmp_path / "cifar100" / "data.hdf5", "w") as file:
        for split in SPLITS:
            for name in classes[split]:
                file.create_dataset(f"group/{name}", data=writers.pixels(name, 32, EACH))
    for split in SPLITS:
        listed = [["group", name] for name in reversed(classes[split])]
        (tmp_path / "cifar100" / sub / f"{split}_labels.json").write_text(json.dumps(listed))
    data = mp.load_dataset(sub, tmp_path, "val", complete=False)
    assert data.classes == tuple(classes["val"])  # in the published order, whatever the file's
    first = data.images[data.labels == 0]
    assert np.array_equal(first.permute(0, 2, 3, 1).numpy(), writers.pixels(data.classes[0], 32, EACH))


def test_birds_are_split_by_their_numbers(tmp_path: Path) -> None:
    root = cub(tmp_path)
    data = mp.load_dataset("cub", root, "val", size=8, complete=False)
    assert data.classes[:2] == ("002.Bird", "006.Bird")
    (root / "CUB_200_2011" / "images" / "002.Bird").rename(root / "CUB_200_2011" / "images" / "201.Bird")
    with pytest.raises(mp.DataError, match="has 49 classes in the val split of CUB instead of 50"):
        mp.load_dataset("cub", root, "val", size=8, complete=False)


def test_tiered_pixels_in_an_archive(tmp_path: Path) -> None:
    root = tiered(tmp_path)
    encoded = mp.load_dataset("tieredimagenet", root, "val", size=8, complete=False)
    for split, count in few_shot_sets.facts("tieredimagenet").counts.items():
        (root / f"{split}_images_png.pkl").unlink()
        np.savez(root / f"{split}_images.npz", images=np.tile(noise(EACH), (count, 1, 1, 1)))
    pixels = mp.load_dataset("tieredimagenet", root, "val", size=8, complete=False)
    assert torch.equal(pixels.images, encoded.images)
    file = root / "val_images.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(mp.DataError, match=r"val_images.npz is no whole .npz file"):
        mp.load_dataset("tieredimagenet", root, "val", size=8, complete=False)
    (root / "train_labels.pkl").unlink()
    with pytest.raises(mp.DataError, match=r"says nothing of classes: train_labels.pkl is missing beside it"):
        mp.load_dataset("tieredimagenet", root, size=8, complete=False)


def test_tiered_classes_in_two_splits_stop_the_import(tmp_path: Path) -> None:
    root = tiered(tmp_path / "here")
    names = [f"n{number:08d}" for number in (*range(350, 446), 447)]
    labels = {"label_specific": np.arange(97).repeat(EACH), "label_specific_str": names}
    writers.dump(root / "val_labels.pkl", labels)
    with pytest.raises(mp.DataError, match="class n00000350 is in two splits, train and val"):
        mp.import_dataset("tieredimagenet", root, tmp_path / "there", size=8, complete=False)
    assert not (tmp_path / "there").exists()


def test_the_shell_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, there = cifar(tmp_path / "here", "fc100"), tmp_path / "there"
    assert run(["data", "import", "fc100", str(root), "--to", str(there), "--size", "16"]) == 2
    assert "has 3 images of class train/000 instead of 600" in " ".join(capsys.readouterr().err.split())
    assert (
        run(["data", "import", "fc100", str(root), "--to", str(there), "--size", "16", "--incomplete"]) == 0
    )
    assert "fc100, val: from pickle" in capsys.readouterr().out
    assert (
        run(
            [
                "data",
                "fc100",
                "--root",
                str(there),
                "--data-options",
                "size=16",
                "--data-options",
                "complete=false",
            ]
        )
        == 0
    )
    assert "60" in capsys.readouterr().out

"""Omniglot from each of its three forms, on a small alphabet of our own and on the real data."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metapeft as mp
from metapeft.datasets import omniglot
from tests.conftest import real_data

SMALL = {
    "images_background/Runes/character01": "train",
    "images_background/Runes/character02": "train",
    "images_background/Runes/character03": "val",
    "images_evaluation/Stars/character01": "test",
}


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" not in request.node.name:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(omniglot, "characters", lambda: SMALL)


def drawing(character: int, drawer: int) -> np.ndarray:
    """A bar on paper (True), `(105, 105)`: its column tells the character, its row the drawer."""
    paper = np.ones((105, 105), dtype=bool)
    paper[3 * drawer : 3 * drawer + 40, 20 * character + 5 : 20 * character + 15] = False
    return paper


def png(character: int, drawer: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(drawing(character, drawer)).save(buffer, "png")
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    return {
        f"{path}/{number:04d}_{drawer + 1:02d}.png": png(number, drawer)
        for number, path in enumerate(SMALL)
        for drawer in range(20)
    }


def as_folders(root: Path) -> Path:
    for name, content in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def as_zips(root: Path) -> Path:
    root.mkdir()
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for name, content in files().items():
                if name.startswith(part):
                    archive.writestr(name, content)
    return root


def as_hdf5(root: Path, order: Sequence[int] = range(20)) -> Path:
    h5py = pytest.importorskip("h5py")
    root.mkdir()
    with h5py.File(root / "data.hdf5", "w") as file:
        for number, path in enumerate(SMALL):
            ink = np.stack([~drawing(number, drawer) for drawer in order])
            file.create_dataset(path, data=ink.astype(np.uint8) * 255)
    return root


@pytest.mark.parametrize("form", [as_folders, as_zips, as_hdf5])
def test_every_form_reads_the_same(form: object, tmp_path: Path) -> None:
    root = form(tmp_path / "omniglot-py")  # type: ignore[operator]
    data = mp.load_dataset("omniglot", root, size=105)
    assert data.images.shape == (160, 1, 105, 105)
    assert data.classes[:5] == (
        *(f"Runes/character01/rot{turn:03d}" for turn in (0, 90, 180, 270)),
        "Runes/character02/rot000",
    )
    for drawer in (0, 7, 19):  # ink 255 on 0, drawers in order, turned counter-clockwise
        ink = torch.from_numpy(~drawing(1, drawer)).byte() * 255
        for turn in range(4):
            assert torch.equal(data.images[80 + 20 * turn + drawer, 0], ink.rot90(turn))
    assert torch.equal(data.labels, torch.arange(8).repeat_interleave(20))
    assert mp.load_dataset("omniglot", root, "test", size=105, rotations=False).classes == (
        "Stars/character01",
    )
    parent = mp.load_dataset("omniglot", tmp_path, size=105)  # the folder above will do
    assert torch.equal(parent.images, data.images)


def test_scaling_keeps_the_ink(tmp_path: Path) -> None:
    root = as_folders(tmp_path / "a")
    large, small = (mp.load_dataset("omniglot", root, size=size) for size in (105, 28))
    assert small.images.shape == (160, 1, 28, 28)
    share = small.images.double().mean(dim=(1, 2, 3)) / large.images.double().mean(dim=(1, 2, 3))
    assert (share - 1).abs().max() < 0.02  # antialiased: no stroke is lost, up to rounding
    assert torch.equal(small.preprocess.mean, mp.load_dataset("omniglot", root, "test").preprocess.mean)


def test_the_split_by_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = as_folders(tmp_path / "a")
    monkeypatch.setattr(omniglot, "_TRAINING_CHARACTERS", 3)
    parts = {
        split: mp.load_dataset("omniglot", root, split, split_by="characters", validation=1, rotations=False)
        for split in ("train", "val", "test")
    }
    assert [len(part.classes) for part in parts.values()] == [2, 1, 1]
    assert len({name for part in parts.values() for name in part.classes}) == 4
    with pytest.raises(ValueError, match="split='val' is empty"):
        mp.load_dataset("omniglot", root, "val", split_by="characters")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    root = as_folders(tmp_path / "a")
    before = mp.load_dataset("omniglot", root, size=105).images[0].clone()
    (root / "images_background/Runes/character01/0000_01.png").write_bytes(png(3, 4))
    assert not torch.equal(mp.load_dataset("omniglot", root, size=105).images[0], before)


def test_incomplete_data_is_refused_by_what_is_missing(tmp_path: Path) -> None:
    root = as_folders(tmp_path / "a")
    (root / "images_background/Runes/character02/0001_07.png").unlink()
    with pytest.raises(mp.DataError, match="Runes/character02 has 19 drawings instead of 20"):
        mp.load_dataset("omniglot", root)
    shutil.rmtree(root / "images_background/Runes/character02")
    with pytest.raises(
        mp.DataError, match="1 of 4 characters are missing, the first is images_background/Runes"
    ):
        mp.load_dataset("omniglot", root)
    root = as_folders(tmp_path / "b")
    shutil.copytree(root / "images_background/Runes", root / "images_background/More")
    with pytest.raises(mp.DataError, match="has 3 characters too many, the first is images_background/More"):
        mp.load_dataset("omniglot", root)
    shutil.rmtree(root / "images_evaluation")
    with pytest.raises(
        mp.DataError, match=r"no Omniglot in .*: it must hold images_background/ and images_evaluation/"
    ):
        mp.load_dataset("omniglot", root)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    root = as_zips(tmp_path / "a")
    whole = (root / "images_evaluation.zip").read_bytes()
    (root / "images_evaluation.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        mp.DataError, match=r"images_evaluation.zip is no whole zip file \(\d+ bytes; a broken download"
    ):
        mp.load_dataset("omniglot", root)
    (root / "images_evaluation.zip").write_bytes(whole[:300] + bytes(60) + whole[360:])
    with pytest.raises(mp.DataError, match="images_evaluation"):
        mp.load_dataset("omniglot", root)
    root = as_folders(tmp_path / "b")
    target = root / "images_background/Runes/character01/0000_03.png"
    target.write_bytes(target.read_bytes()[:50])
    with pytest.raises(mp.DataError, match=r"0000_03.png is no whole image"):
        mp.load_dataset("omniglot", root)
    Image.new("1", (28, 28)).save(target)
    with pytest.raises(mp.DataError, match=r"0000_03.png must have 105x105 pixels, not 28x28"):
        mp.load_dataset("omniglot", root)
    root = as_hdf5(tmp_path / "c")
    (root / "data.hdf5").write_bytes((root / "data.hdf5").read_bytes()[:1000])
    with pytest.raises(mp.DataError, match=r"data.hdf5 cannot be read.*no whole HDF5 file"):
        mp.load_dataset("omniglot", root)


def test_downloads_come_from_the_original_address_with_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooch = pytest.importorskip("pooch")
    source = as_zips(tmp_path / "there")
    seen: dict[str, str] = {}

    def retrieve(url: str, known_hash: str, fname: str, path: Path, progressbar: bool) -> None:
        seen[url] = known_hash
        path.mkdir(exist_ok=True)
        shutil.copy(source / fname, path)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    target = tmp_path / "here" / "omniglot-py"
    target.parent.mkdir()
    with pytest.raises(mp.DataError, match="there is no folder"):  # never silently
        mp.load_dataset("omniglot", target)
    assert len(mp.load_dataset("omniglot", target, download=True)) == 160
    seen_before = dict(seen)
    assert len(mp.load_dataset("omniglot", as_folders(tmp_path / "unpacked"), download=True)) == 160
    assert seen == seen_before  # what is there is not fetched
    address = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
    assert seen == {
        f"{address}/images_background.zip": "sha256:ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
        f"{address}/images_evaluation.zip": "sha256:1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
    }


def test_a_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(
        mp.DataError, match=r"cannot fetch https.*images_background.zip to .*no route to host"
    ):
        mp.load_dataset("omniglot", tmp_path / "omniglot-py", download=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 106}, "size=106: allowed is a whole number from 8 to 105"),
        ({"size": 28.0}, "size=28.0: allowed is a whole number from 8 to 105"),
        ({"split_by": "alphabet"}, "split_by must be 'vinyals' or 'characters', not 'alphabet'"),
        ({"validation": 5}, "validation= has no effect with split_by='vinyals'"),
        (
            {"split_by": "characters", "validation": 1200},
            "validation=1200: allowed is a whole number from 0 to 1199",
        ),
        ({"split": "trainval"}, "split must be one of 'train', 'val', 'test'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.load_dataset("omniglot", **options)  # type: ignore[arg-type]


def test_the_shipped_split_has_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert Counter(omniglot.characters().values()) == {"train": 1028, "val": 172, "test": 423}
    assert Counter(path.split("/")[0] for path in omniglot.characters()) == {
        "images_background": 964,
        "images_evaluation": 659,
    }
    assert {split: len(places) for split, places in omniglot._parts("characters", 100).items()} == {
        "train": 1100,
        "val": 100,
        "test": 423,
    }


def test_real_class_lists_are_those_of_vinyals() -> None:
    folder = real_data("omniglot-py") / "splits" / "vinyals"
    hashes = {"train": "457308e09b65d4e6", "val": "0f4147d2e75b6478", "test": "83f2b4e4fa0cdaa8"}
    for split, expected in hashes.items():
        data = mp.load_dataset("omniglot", split=split)
        assert len(data) == 20 * len(data.classes)
        assert data.split_hash == expected
        if folder.is_dir():
            assert sorted(data.classes) == sorted((folder / f"{split}.txt").read_text().split())


def test_real_drawings_are_apart() -> None:
    """Drawings of a character are nearer to one another than to others': the order of labels is right."""
    real_data("omniglot-py")
    data = mp.load_dataset("omniglot", split="test", rotations=False)
    flat = torch.nn.functional.avg_pool2d(data.images.float(), 4).flatten(1)
    flat = torch.nn.functional.normalize(flat - flat.mean(0))
    means = torch.nn.functional.normalize(flat.view(423, 20, -1)[:, :10].mean(1))
    found = (flat.view(423, 20, -1)[:, 10:] @ means.T).argmax(-1)
    assert (found == torch.arange(423)[:, None]).float().mean() > 0.2  # chance: 1 / 423

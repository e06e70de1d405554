"""A folder of images as its user has it: hidden files beside the images, folders in folders, icons."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import metapeft as mp

ALL = {"fractions": (1.0, 0.0, 0.0), "size": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def picture(file: Path, grey: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(file)


def folder(root: Path) -> Path:
    for grey, name in enumerate("ab"):
        for i in range(2):
            picture(root / name / f"{i}.png", 100 * grey + i)
    return root


def test_what_systems_and_editors_leave_changes_nothing(tmp_path: Path) -> None:
    plain = mp.load_dataset("folder", root=folder(tmp_path / "plain"), **ALL)
    root = folder(tmp_path / "left")
    picture(root / ".ipynb_checkpoints" / "0-checkpoint.png", 7)
    picture(root / "a" / ".ipynb_checkpoints" / "0-checkpoint.png", 7)
    (root / "a" / "._0.png").write_bytes(b"\0\5\26\7 resource fork")
    (root / ".DS_Store").write_bytes(b"\0")
    found = mp.load_dataset("folder", root=root, **ALL)
    assert found.classes == plain.classes == ("a", "b")
    assert torch.equal(found.images, plain.images)


def test_images_below_a_class_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "root")
    picture(root / "b" / "more" / "9.png", 7)
    assert len(mp.load_dataset("folder", root=root, **ALL)) == 4
    assert "1 images in folders below it are left out, such as more" in caplog.text


def test_icons_are_not_one_black_image(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(2):
            file = tmp_path / name / f"{i}.png"
            file.parent.mkdir(exist_ok=True)
            icon = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
            icon.putpixel((i, ord(name) % 8), (0, 0, 0, 255))
            icon.save(file)
    found = mp.load_dataset("folder", root=tmp_path, **ALL)
    assert len(found.images.flatten(1).unique(dim=0)) == 4
    black = mp.load_dataset("folder", root=tmp_path, ground="black", **ALL)
    assert not black.images.any()
    with pytest.raises(ValueError, match="ground='grey': allowed are 'white' and 'black'"):
        mp.load_dataset("folder", root=tmp_path, ground="grey", **ALL)


def test_glyphs_under_another_default_type() -> None:
    plain = mp.load_dataset("glyphs", split="val", size=20)
    torch.set_default_dtype(torch.float64)
    try:
        again = mp.load_dataset("glyphs", split="val", size=20, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(plain.images, again.images)


DRAWN = [(14, 5, [9, 2, 3]), (15, 5, [5, 5, 5]), (16, 5, [6, 5, 5]), (14, 4, [6, 4, 4]), (40, 5, [26, 6, 8])]


@pytest.mark.parametrize(("classes", "ways", "parts"), DRAWN)
def test_a_drawn_split_has_the_classes_that_episodes_need(
    classes: int, ways: int, parts: list[int], tmp_path: Path
) -> None:
    for k in range(classes):
        picture(tmp_path / f"c{k:02d}" / "0.png", k)
    found = [
        mp.load_dataset("folder", tmp_path, split, size=8, ways=ways) for split in ("train", "val", "test")
    ]
    assert [len(data.classes) for data in found] == parts
    assert len({name for data in found for name in data.classes}) == classes
    if min(parts) < ways:
        with pytest.raises(ValueError, match=r"ways=5 needs 5 classes, but .* has 2 in its val split; its 14 classes "
                           "give three splits of at most 4 each: take ways=4 or fewer"):  # fmt: skip
            mp.EpisodeSampler(found[1], ways=ways, queries=1)


def split_root(root: Path) -> Path:
    for grey, name in enumerate(("train/a", "train/b", "valid/c", "test/d")):
        picture(root / name / "0.png", grey)
    return root


def test_splits_that_the_folder_has_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = split_root(tmp_path / "root")
    found = {
        split: mp.load_dataset("folder", root, split, size=8).classes for split in ("train", "val", "test")
    }
    assert found == {"train": ("a", "b"), "val": ("c",), "test": ("d",)}
    assert caplog.text == ""
    with pytest.raises(ValueError, match=r"fractions has no effect on .*root, which holds train, val, test"):
        mp.load_dataset("folder", root, fractions=(1, 0, 0), size=8)
    picture(root / "test" / "a" / "0.png", 3)
    with pytest.raises(
        mp.DataError, match=r"class a stands in .*train and in .*test: few-shot splits share no class; "
    ):
        mp.load_dataset("folder", root, size=8)


def test_one_split_is_not_split_again_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = split_root(tmp_path / "root")
    assert len(mp.load_dataset("folder", root / "train", **ALL).classes) == 2
    assert "is one of the splits of" in caplog.text
    assert f"root={root} takes the splits as they are" in caplog.text


def test_a_broken_image_is_named_and_skipped_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(tmp_path / "root")
    (root / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(mp.DataError, match=r"1.png is no whole image"):
        mp.load_dataset("folder", root, **ALL)
    for _ in range(2):  # the second time from the cache
        data = mp.load_dataset("folder", root, broken="skip", **ALL)
        assert data.labels.tolist() == [0, 1, 1]
        assert f"1 of 4 images cannot be read and are left out: {root / 'a' / '1.png'}" in caplog.text
        caplog.clear()
    (root / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(mp.DataError, match="class a has no image that can be read"):
        mp.load_dataset("folder", root, broken="skip", **ALL)
    with pytest.raises(ValueError, match="broken='ignore': allowed are 'refuse' and 'skip'"):
        mp.load_dataset("folder", root, broken="ignore", **ALL)

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

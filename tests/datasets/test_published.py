"""Rows, file names, zips and pixels are compared with hashes of what was published."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metapeft as mp
from metapeft.datasets import miniimagenet, miniimagenet_rows, omniglot, omniglot_files, omniglot_published
from metapeft.datasets.published import SHORT, lines_hash
from tests.conftest import real_data
from tests.datasets.test_miniimagenet import CLASSES, edit
from tests.datasets.test_miniimagenet import root as root  # the fixture: four images a class
from tests.datasets.test_omniglot import SMALL, as_folders, as_hdf5, as_zips, drawing

RUNES = "images_background/Runes"


@pytest.fixture
def rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small miniImageNet, its rows being the published ones."""
    table: dict[str, object] = {split: " ".join(names) for split, names in CLASSES.items()}
    hashes: dict[str, object] = {
        split: lines_hash((root / f"{split}.csv").read_text().splitlines()[1:]) for split in CLASSES
    }
    every = [name for names in CLASSES.values() for name in names]
    hashes["classes"] = {name: lines_hash(f"{name}_{i}.jpg" for i in range(4))[:SHORT] for name in every}
    monkeypatch.setattr(miniimagenet_rows, "table", lambda _: {**table, "sha256": hashes})
    monkeypatch.setattr(miniimagenet_rows, "PER_CLASS", 4)
    return root


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_marks_do_not_matter(end: str, rows: Path) -> None:
    file = rows / "train.csv"
    file.write_text("\ufeff" + end.join(file.read_text().split()) + end, encoding="utf-8", newline="")
    assert len(mp.load_dataset("miniimagenet", rows, per_class=4)) == 12


def test_other_rows_are_refused_by_where_they_differ(rows: Path) -> None:
    text = (rows / "train.csv").read_text()

    def refused(message: str) -> None:
        with pytest.raises(mp.DataError, match=message):
            mp.load_dataset("miniimagenet", rows, per_class=4)
        assert len(mp.load_dataset("miniimagenet", rows, per_class=None)) == 12  # what is there
        (rows / "train.csv").write_text(text)

    edit(rows, "train", "n01_3.jpg,n01", "n01_3.jpg,n02")
    edit(rows, "train", "n02_0.jpg,n02", "n02_0.jpg,n01")
    refused(r"train.csv is not Ravi .*: line 5 gives n01_3.jpg the label n02; were labels exchanged")
    (rows / "images" / "n02_9.jpg").write_bytes((rows / "images" / "n02_1.jpg").read_bytes())
    edit(rows, "train", "n02_1.jpg", "n02_9.jpg")
    refused(r"the file names of 1 classes differ \(n02\); are they of another version")
    edit(rows, "train", "n01_0.jpg,n01\nn01_1.jpg,n01", "n01_1.jpg,n01\nn01_0.jpg,n01")
    refused("the rows are the published ones, but in another order")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"filename,label\nn01_0.jpg,n01\nn01_1.jpg\n", r"train.csv has no filename or no label in line 3"),
        (b"filename,label\n\nn01_0.jpg,\n", r"train.csv has no filename or no label in line 3"),
        (b"filename,label\n,n01\n", r"train.csv has no filename or no label in line 2"),
        (b"filename,label\nn01_0.jpg,n01\n\x89PNG\x00", r"train.csv is no text in UTF-8 \(line 3, byte 29\)"),
        ("filename,label\n".encode("utf-16"), r"train.csv is no text in UTF-8 \(line 1, byte 0\)"),
        (bytes(200_000), r"train.csv is no CSV file \(line 1: field larger"),
        (bytes(200), r"train.csv must begin with the columns filename,label, not .{0,90}$"),
        (b"", r"train.csv must begin with the columns filename,label, not \[\]"),
    ],
)
def test_what_is_no_table_is_one_sentence(content: bytes, message: str, root: Path) -> None:
    (root / "train.csv").write_bytes(content)
    with pytest.raises(mp.DataError, match=message):
        mp.load_dataset("miniimagenet", root, per_class=None)


def test_real_rows_with_two_labels_exchanged(tmp_path: Path) -> None:
    folder = real_data("miniimagenet")
    classes = miniimagenet.class_names("val")
    read = miniimagenet_rows.read_rows
    for split in ("train", "val", "test"):
        read(folder / f"{split}.csv", split, miniimagenet.class_names(split), 600)
    lines = (folder / "val.csv").read_text().splitlines()
    (tmp_path / "val.csv").write_text("\n".join(lines))
    assert len(read(tmp_path / "val.csv", "val", classes, 600)) == 9600
    (one, first), (two, second) = lines[7].split(","), lines[5000].split(",")
    lines[7], lines[5000] = f"{one},{second}", f"{two},{first}"
    (tmp_path / "val.csv").write_text("\n".join(lines))
    with pytest.raises(mp.DataError, match=f"line 8 gives {one} the label {second}"):
        read(tmp_path / "val.csv", "val", classes, 600)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The small Omniglot in folders, its files and drawings being the published ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(omniglot, "characters", lambda: SMALL)
    folder = as_folders(tmp_path / "omniglot-py")
    source, digests = omniglot_files.Folders(folder), omniglot_published.Digests()
    for path in SMALL:
        digests.add(path, omniglot_published.bits(path, source.read(path), ""))
    names, drawings = omniglot_published.name_digests(source, list(SMALL)), digests.hexadecimal()
    published = {
        name: (names[name], drawings[name])
        if name in omniglot_files.SETS
        else (names[name][:SHORT], drawings[name][:SHORT])
        for name in names
    }
    monkeypatch.setattr(omniglot_published, "hashes", lambda _: published)
    packed = {path: [omniglot_published.bits(path, one, "") for one in source.read(path)] for path in SMALL}
    orders = {path: [sorted(found).index(one) for one in found] for path, found in packed.items()}
    monkeypatch.setattr(omniglot_published, "orders", lambda: orders)
    yield folder
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_published_drawings_pass_in_every_form(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zips = as_zips(tmp_path / "zips")
    with pytest.raises(
        mp.DataError, match=r"images_background.zip is not the published file: its SHA-256 is"
    ):
        mp.load_dataset("omniglot", zips)
    for part in omniglot_files.SETS:
        sha256 = hashlib.sha256((zips / f"{part}.zip").read_bytes()).hexdigest()
        monkeypatch.setitem(omniglot_files.SHA256, part, sha256)
    for folder in (small, zips, as_hdf5(tmp_path / "hdf5")):
        assert len(mp.load_dataset("omniglot", folder)) == 160


def test_torchmeta_may_store_drawings_in_any_order(small: Path, tmp_path: Path) -> None:
    """It takes them as a folder happens to list them."""
    own = mp.load_dataset("omniglot", small, size=105)
    other = mp.load_dataset(
        "omniglot", as_hdf5(tmp_path / "hdf5", [7, *range(7), *range(19, 7, -1)]), size=105
    )
    assert torch.equal(own.images, other.images)


def test_real_drawings_are_put_in_order() -> None:
    source = omniglot_files.Folders(real_data("omniglot-py"))
    random = np.random.default_rng(0)
    assert set(omniglot_published.orders()) == set(omniglot.characters())
    for path in [*omniglot.characters()][::60]:
        drawings = source.read(path)
        found = omniglot_published.in_order(path, drawings[random.permutation(20)])
        np.testing.assert_array_equal(found, drawings)


def test_other_pixels_are_refused_in_every_form(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        "pixels of the drawings of images_background are not the published ones: .* 1 of 1 alphabets differ, "
        f"the first is {RUNES}.*"
    )
    changed = drawing(1, 3)
    changed[50, 50] ^= True
    file = small / RUNES / "character02" / "0001_04.png"
    Image.fromarray(changed).save(file)
    with pytest.raises(mp.DataError, match=message + "Unpack the zip files from https.* again"):
        mp.load_dataset("omniglot", small)
    assert not list((tmp_path / "cache").rglob("*.npy"))
    zips = as_zips(tmp_path / "zips")
    with zipfile.ZipFile(zips / "images_background.zip", "w") as archive:
        for path in sorted((small / "images_background").rglob("*.png")):
            archive.write(path, path.relative_to(small).as_posix())
    for part in omniglot_files.SETS:
        sha256 = hashlib.sha256((zips / f"{part}.zip").read_bytes()).hexdigest()
        monkeypatch.setitem(omniglot_files.SHA256, part, sha256)
    with pytest.raises(mp.DataError, match=message + "Delete the zip file and fetch it again"):
        mp.load_dataset("omniglot", zips)
    h5py = pytest.importorskip("h5py")
    stored = as_hdf5(tmp_path / "hdf5")
    with h5py.File(stored / "data.hdf5", "a") as opened:
        opened[f"{RUNES}/character01"][0, 0, 0] ^= 255
    with pytest.raises(mp.DataError, match=message + r"Make data.hdf5 again"):
        mp.load_dataset("omniglot", stored)
    Image.fromarray(np.where(changed, 255, 9).astype(np.uint8)).save(file)
    with pytest.raises(mp.DataError, match=f"those of {RUNES}/character02 have greys"):
        mp.load_dataset("omniglot", small)


def test_other_file_names_are_refused(small: Path) -> None:
    first, second = small / RUNES / "character01", small / RUNES / "character02"
    (first / "0000_07.png").rename(first / "0000_7.png")
    with pytest.raises(mp.DataError, match=f"{RUNES}/character01/0000_08.png where .*_07.png was published"):
        mp.load_dataset("omniglot", small)
    (first / "0000_7.png").rename(first / "0000_07.png")
    first.rename(small / "aside")
    second.rename(first)
    (small / "aside").rename(second)  # two characters have changed places
    message = f"names of the files of images_background .*1 of 1 alphabets differ, the first is {RUNES}"
    with pytest.raises(mp.DataError, match=message):
        mp.load_dataset("omniglot", small)


def test_the_shipped_hashes_belong_to_the_shipped_characters() -> None:
    found = omniglot_published.hashes(tuple(omniglot.characters()))
    assert found is not None
    alphabets = {path.rpartition("/")[0] for path in omniglot.characters()}
    assert set(found) == {*omniglot_files.SETS, *alphabets}
    assert len(alphabets) == 50
    assert omniglot_published.hashes(tuple(SMALL)) is None

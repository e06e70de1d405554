"""miniImageNet is the same data set in whichever form it lies on disk, and what is wrong with it is one sentence."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import metapeft as mp
from metapeft.base.files import cache_folder
from metapeft.datasets import found, miniimagenet, miniimagenet_rows
from metapeft.datasets.forms import unpickler
from tests.datasets.forms import writers

CLASSES = {"train": ["n01", "n02", "n03"], "val": ["n04"], "test": ["n05", "n06"]}


@pytest.fixture(autouse=True)
def _small(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(miniimagenet, "class_names", CLASSES.__getitem__)


def read(
    root: Path, split: str = "train", size: int = 12, per_class: int | None = writers.EACH
) -> mp.ImageData:
    data: mp.ImageData = mp.load_dataset("miniimagenet", root, split, size=size, per_class=per_class)
    return data


def by_class(data: mp.ImageData) -> dict[str, torch.Tensor]:
    return {name: data.images[data.labels == place] for place, name in enumerate(data.classes)}


@pytest.mark.parametrize("form", writers.FORMS)
def test_every_form_is_the_same_data_set(form: str, tmp_path: Path) -> None:
    root = writers.write(form, tmp_path / "here", CLASSES)
    for split, names in CLASSES.items():
        data = read(root, split)
        assert data.classes == tuple(names)
        for name, images in by_class(data).items():
            assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), writers.pixels(name)), (split, name)
        batch = mp.EpisodeSampler(data, 1, 1, 2, seed=3).batch(0, 5)
        plain = mp.EpisodeSampler(
            mp.ImageData(torch.cat(list(by_class(data).values())), torch.arange(len(data)) // 4, names, split),
            1, 1, 2, seed=3,
        ).batch(0, 5)  # fmt: skip
        assert torch.equal(batch.query_x, plain.query_x)
        again = read(root, split)  # from the cache
        assert torch.equal(again.images, data.images)
        assert torch.equal(again.labels, data.labels)
    assert read(root, size=8).images.shape == (12, 3, 8, 8)


@pytest.mark.parametrize("form", writers.FORMS)
def test_import_writes_one_store_that_replaces_the_files(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miniimagenet_rows, "PER_CLASS", writers.EACH)
    root, target = writers.write(form, tmp_path / "here", CLASSES), tmp_path / "there"
    forms = mp.import_dataset("miniimagenet", root, target, size=12)
    assert set(forms) == set(CLASSES)
    before = {split: by_class(read(root, split)) for split in CLASSES}
    shutil.rmtree(root)
    for split in CLASSES:
        data = read(target, split)
        assert data.images.untyped_storage().nbytes() >= data.images.numel()
        after = by_class(data)
        assert list(after) == list(before[split])
        assert all(torch.equal(after[name], before[split][name]) for name in after)
        assert read(target, split, size=8).images.shape[-1] == 8
    assert sorted(path.name for path in target.iterdir()) == ["store"]
    with pytest.raises(mp.DataError, match=r"there is .*store already: remove it to import anew"):
        mp.import_dataset("miniimagenet", target, target, size=12)


def renamed(root: Path, form: str) -> None:
    writers.write(form, root, CLASSES | {"train": ["n01", "n02", "n99"]})


@pytest.mark.parametrize("form", [form for form in writers.FORMS if form != "class folders"])
def test_a_renamed_class_is_named(form: str, tmp_path: Path) -> None:
    renamed(tmp_path / "here", form)
    with pytest.raises(mp.DataError, match=r"of 3 classes 1 are missing \(n03\), and 1 are foreign \(n99\)"):
        read(tmp_path / "here")
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("form", [form for form in writers.FORMS if form not in ("csv", "class folders")])
def test_a_class_of_another_split_is_named(form: str, tmp_path: Path) -> None:
    root = writers.write(
        form, tmp_path / "here", CLASSES | {"train": ["n01", "n02", "n05"], "test": ["n03", "n06"]}
    )
    with pytest.raises(
        mp.DataError, match="class n05 of miniImageNet belongs to the test split, but stands in train"
    ):
        read(root)


@pytest.mark.parametrize("form", writers.FORMS)
def test_a_short_class_is_named(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = writers.write(form, tmp_path / "here", CLASSES)
    with pytest.raises(
        mp.DataError, match=r"(has|lists) 4 images of class n01 instead of 5; per_class=None takes"
    ):
        read(root, per_class=5)
    monkeypatch.setattr(miniimagenet_rows, "PER_CLASS", 5)
    with pytest.raises(mp.DataError, match="4 images of class n01 instead of 5"):
        mp.import_dataset("miniimagenet", root, tmp_path / "there", size=12)
    assert_nothing_is_left(tmp_path)


def test_a_class_in_two_splits_is_named(tmp_path: Path) -> None:
    root = writers.write("split folders", tmp_path / "here", CLASSES)
    shutil.copytree(root / "train" / "n02", root / "val" / "n02")
    with pytest.raises(
        mp.DataError, match=r"class n02 stands in .*train and in .*val: few-shot splits share no class"
    ):
        read(root)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    root = writers.write("learn2learn's pickles", tmp_path / "here", CLASSES)
    (root / "mini-imagenet-cache-validation.pkl").unlink()
    with pytest.raises(mp.DataError, match=r"mini-imagenet-cache-train.pkl\), but nothing of the val split"):
        read(root, "val")
    with pytest.raises(mp.DataError, match="but nothing of the val split: its counterpart is missing"):
        mp.import_dataset("miniimagenet", root, tmp_path / "there", size=12, complete=False)
    assert_nothing_is_left(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        mp.DataError, match=r"no miniImageNet in .*empty: put there class folders .*train.csv"
    ):
        read(tmp_path / "empty")


CUT = {
    "learn2learn's pickles": ("mini-imagenet-cache-train.pkl", "is no whole pickle"),
    "HDF5": ("train_data.hdf5", "is no whole HDF5 file"),
    "Parquet": ("data/train-00001-of-00002.parquet", "is no whole Parquet file"),
    "split folders": ("train/n02/n02_3.png", "is no whole image"),
}


@pytest.mark.parametrize("form", CUT)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_sentence_and_leaves_nothing(form: str, kept: float, tmp_path: Path) -> None:
    root = writers.write(form, tmp_path / "here", CLASSES)
    name, message = CUT[form]
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(mp.DataError, match=f"{Path(name).name} {message}") as caught:
        read(root)
    assert "\n" not in str(caught.value)
    with pytest.raises(mp.DataError, match=message):
        mp.import_dataset("miniimagenet", root, tmp_path / "there", size=12, complete=False)
    assert_nothing_is_left(tmp_path)


def test_a_part_of_a_set_of_files_is_missed(tmp_path: Path) -> None:
    root = writers.write("Parquet", tmp_path / "here", CLASSES)
    (root / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        mp.DataError, match=r"has 1 of the 2 files that train-00000-of-00002.parquet belongs to"
    ):
        read(root)


def test_an_import_that_is_stopped_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = writers.write("class folders", tmp_path / "here", CLASSES)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(found, "_pixels", stop)
    with pytest.raises(KeyboardInterrupt):
        mp.import_dataset("miniimagenet", root, tmp_path / "there", size=12, complete=False)
    assert_nothing_is_left(tmp_path)


def test_a_damaged_store_says_so(tmp_path: Path) -> None:
    root, target = writers.write("class folders", tmp_path / "here", CLASSES), tmp_path / "there"
    mp.import_dataset("miniimagenet", root, target, size=12, complete=False)
    images = target / "store" / "train.npy"
    images.write_bytes(images.read_bytes()[:-5])
    with pytest.raises(mp.DataError, match=r"train.npy is damaged .*: remove .*store and import again"):
        read(target)
    (target / "store" / "store.json").write_text("{}")
    with pytest.raises(mp.DataError, match=r"store.json is damaged, or of another version"):
        read(target)


def test_pickles_are_read_for_their_labels_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = writers.write("learn2learn's pickles", tmp_path / "here", CLASSES)
    read(root)

    def never(file: Path) -> None:
        raise AssertionError(file)

    monkeypatch.setattr(unpickler, "load", never)
    monkeypatch.setattr("metapeft.datasets.forms.pickles.load", never)
    assert len(read(root)) == 12


def test_other_names_of_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = writers.write("class folders", tmp_path / "here", CLASSES)
    with caplog.at_level(logging.WARNING):
        miniimagenet._check_names(miniimagenet.open_split(root, "train", None))
    assert "are not named as in Ravi and Larochelle's list" in caplog.text


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("[", "is no whole JSON"),
        ("{}", "must be a list of the names of classes"),
        ("[1]", "must be a list of the names of classes"),
        ('["n01", "n01"]', "names class n01 twice"),
        ('["n01", "n02", "n07"]', "has no class n07, which its list names"),
    ],
)
def test_a_wrong_list_of_torchmeta_is_refused(listed: str, message: str, tmp_path: Path) -> None:
    root = writers.write("HDF5", tmp_path / "here", CLASSES)
    (root / "train_labels.json").write_text(listed)
    with pytest.raises(mp.DataError, match=message):
        read(root)
    (root / "train_labels.json").unlink()
    with pytest.raises(
        mp.DataError, match=r"has no list of its classes: train_labels.json is missing beside it"
    ):
        read(root)


def test_names_that_cannot_be_imported_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="did you mean 'miniimagenet'"):
        mp.import_dataset("miniimagnet", tmp_path)
    monkeypatch.delenv("METAPEFT_DATA", raising=False)
    with pytest.raises(
        mp.DataError, match="no place to write miniimagenet to: give to=, or set METAPEFT_DATA"
    ):
        mp.import_dataset("miniimagenet", tmp_path)
    with pytest.raises(mp.DataError, match="there is no folder"):
        mp.import_dataset("miniimagenet", tmp_path / "nowhere", tmp_path)


def assert_nothing_is_left(tmp_path: Path) -> None:
    assert list((tmp_path / "there").rglob("*")) == []
    assert list(cache_folder().rglob("*.npy")) == list(cache_folder().rglob("*.part*")) == []

"""Data sets by name, and the small ones: sinusoid and class folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import metapeft as mp
from metapeft.base import counter


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("omniglott", {}, "unknown data set 'omniglott': known are .* did you mean 'omniglot'?"),
        ("omniglot", {"splitby": "vinyals"}, "has no option 'splitby'.*did you mean 'split_by'?"),
        ("glyphs", {"download": True}, "has no option 'download': it has size, per_class, seed"),
        ("glyphs", {"root": "x"}, "root has no effect on 'glyphs'"),
        ("sinusoid", {"root": "x"}, "root has no effect on 'sinusoid'"),
        ("sinusoid", {"size": 28}, "has no option 'size': it has noise"),
        ("sinusoid", {"noise": -1.0}, "noise=.*: allowed is a finite number of at least 0"),
        ("sinusoid", {"split": "valid"}, "split must be one of 'train', 'val', 'test', not 'valid'"),
        ("glyphs", {"size": 57}, "size=57: allowed is a whole number from 8 to 56"),
        ("glyphs", {"per_class": 0}, "per_class=0: allowed is a whole number of at least 1"),
        ("glyphs", {"split": "all"}, "split must be one of"),
    ],
)
def test_bad_names_and_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.load_dataset(name, **options)


def _draw(split: str = "train", noise: float = 0.0, tasks: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    return mp.Sinusoid(split, noise).draw(counter.words(counter.root(0), tasks)[0], 40)


def test_sinusoids_have_the_published_ranges() -> None:
    x, y = _draw()
    assert stats.kstest(x[:, 0, 0].numpy(), stats.uniform(-5, 10).cdf).pvalue > 0.001
    # y = a sin(x - p) = a cos(p) sin(x) - a sin(p) cos(x): solve for both numbers of each task.
    waves = torch.cat([x.sin(), -x.cos()], dim=2).double()
    found = torch.linalg.lstsq(waves, y.double()).solution[..., 0]
    amplitude, phase = found.norm(dim=1), torch.atan2(found[:, 1], found[:, 0])
    assert (waves @ found[..., None] - y).abs().max() < 1e-5
    assert stats.kstest(amplitude.numpy(), stats.uniform(0.1, 4.9).cdf).pvalue > 0.001
    assert stats.kstest(phase.numpy(), stats.uniform(0, math.pi).cdf).pvalue > 0.001


def test_sinusoid_noise_and_splits() -> None:
    x, y = _draw(tasks=500)
    noisy_x, noisy_y = _draw(noise=0.3, tasks=500)
    assert torch.equal(x, noisy_x)
    assert stats.kstest((noisy_y - y).flatten().numpy() / 0.3, "norm").pvalue > 0.001
    assert not torch.equal(_draw("test", tasks=5)[0], x[:5])
    assert mp.Sinusoid("test").split_hash != mp.Sinusoid("train").split_hash


def make_folder(root: Path, classes: int = 10, each: int = 3) -> Path:
    """Class k: images of one colour, 10 + 20 k, sizes that differ."""
    for k in range(classes):
        (root / f"class{k}").mkdir(parents=True)
        for i in range(each):
            picture = np.full((20 + i, 30, 3), 10 + 20 * k, dtype=np.uint8)
            Image.fromarray(picture).save(root / f"class{k}" / f"{i}.png")
    return root


def test_a_folder_is_split_by_class(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine")
    parts = {split: mp.load_dataset("folder", root, split, size=16) for split in ("train", "val", "test")}
    assert [len(data.classes) for data in parts.values()] == [6, 2, 2]
    assert len({name for data in parts.values() for name in data.classes}) == 10
    for data in parts.values():
        assert data.images.shape[1:] == (3, 16, 16)
        for label, image in zip(data.labels, data.images):
            assert (image == 10 + 20 * int(data.classes[label][5:])).all()
        assert torch.equal(data.preprocess.mean, parts["train"].preprocess.mean)  # the training data's
    again = mp.load_dataset("folder", root, "val", size=16)
    assert again.split_hash == parts["val"].split_hash
    other = {tuple(mp.load_dataset("folder", root, "val", size=16, seed=seed).classes) for seed in range(5)}
    assert len(other) > 1


def test_a_folder_with_a_split_of_ones_own(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine", classes=4)
    mine = {"train": ["class3", "class1"], "test": ["class0"]}
    data = mp.load_dataset("folder", root, classes=mine, size=8, channels=1)
    assert data.classes == ("class1", "class3")
    assert data.images.shape == (6, 1, 8, 8)
    with pytest.raises(
        ValueError, match=r"the val split of .* has no classes: 4 classes, 2 in train, 0 in val"
    ):
        mp.load_dataset("folder", root, "val", classes=mine)
    for classes, message in (
        ({"train": ["class9"]}, "class 'class9' of the train split has no folder"),
        (
            {"train": ["class1"], "val": ["class1"]},
            r"class 'class1' stands twice in classes \(train and val\)",
        ),
        ({"training": ["class1"]}, "classes has the split 'training'"),
    ):
        with pytest.raises(ValueError, match=message):
            mp.load_dataset("folder", root, classes=classes)


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="root must be given for 'folder'"):
        mp.load_dataset("folder")
    with pytest.raises(mp.DataError, match="there is no folder"):
        mp.load_dataset("folder", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(mp.DataError, match="holds no folders"):
        mp.load_dataset("folder", tmp_path / "empty")
    root = make_folder(tmp_path / "mine", classes=3)
    for options, message in (
        ({"channels": 2}, "channels must be 1"),
        ({"size": 4}, "size=4: allowed is a whole number from 8 to 2048"),
        ({"fractions": (0.5, 0.5, 0.5)}, "fractions must be three numbers of at least 0 with sum 1"),
    ):
        with pytest.raises(ValueError, match=message):
            mp.load_dataset("folder", root, **options)
    (root / "class1" / "1.png").write_bytes((root / "class1" / "1.png").read_bytes()[:40])
    with pytest.raises(mp.DataError, match=r"1.png is no whole image"):
        mp.load_dataset("folder", root, classes={"train": ["class1"]})
    (root / "bare").mkdir()
    with pytest.raises(mp.DataError, match=r"class folder .*bare holds no images"):
        mp.load_dataset("folder", root)

"""What every data set of the table keeps to: shapes, splits, episodes, and being read again as a run stores it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.datasets import miniimagenet, omniglot
from metapeft.datasets.table import registry
from metapeft.episodes.settings import of_data
from tests.datasets import test_miniimagenet, test_omniglot
from tests.datasets.forms import test_few_shot_sets
from tests.datasets.test_loading import make_folder
from tests.datasets.test_texts import TEXTS

SPLITS = ("train", "val", "test")


def few_shot(name: str, root: Path) -> dict[str, Any]:
    return {"root": test_few_shot_sets.MADE[name](root / name), "size": 8, "complete": False}


#: every data set of the table -> its options, from a folder in which its files may be made
GRID: dict[str, Callable[[Path], dict[str, Any]]] = {
    "omniglot": lambda root: {"root": test_omniglot.as_folders(root / "o"), "size": 20},
    "miniimagenet": lambda root: {
        "root": test_miniimagenet.as_folder(root / "m"),
        "size": 16,
        "per_class": 4,
    },
    **{name: functools.partial(few_shot, name) for name in test_few_shot_sets.MADE},
    "folder": lambda root: {"root": make_folder(root / "f"), "size": 12},
    "glyphs": lambda root: {"per_class": 3, "size": 16, "seed": 4},
    "glyph-pairs": lambda root: {"per_class": 3, "size": 16, "seed": 4},
    "omniglot-pairs": lambda root: {"root": test_omniglot.as_folders(root / "o"), "size": 20, "seed": 4},
    "coloured-glyphs": lambda root: {"by": "colour", "per_class": 3, "size": 16, "seed": 4},
    "functions": lambda root: {"noise": 0.5},
    "sinusoid": lambda root: {"noise": 0.5},
}
GENERATIVE = {"functions", "sinusoid"}  # tasks that are made up, without images


def test_every_data_set_is_in_the_grid() -> None:
    assert set(GRID) | TEXTS == set(registry.names)  # of texts: test_texts.py


@pytest.fixture(params=GRID)
def parts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The three splits of one data set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(omniglot, "characters", lambda: test_omniglot.SMALL)
    monkeypatch.setattr(miniimagenet, "class_names", test_miniimagenet.CLASSES.__getitem__)
    options = GRID[request.param](tmp_path)
    return {split: mp.load_dataset(request.param, split=split, **options) for split in SPLITS}


def test_images_labels_and_classes(parts: dict[str, Any]) -> None:
    assert [data.split for data in parts.values()] == list(SPLITS)
    assert len({data.split_hash for data in parts.values()}) == 3
    if parts["train"].name in GENERATIVE:
        assert parts["train"].classes is None
        return
    names = [name for data in parts.values() for name in data.classes]
    assert len(names) == len(set(names))
    for data in parts.values():
        assert data.images.dtype == torch.uint8
        assert data.images.ndim == 4
        assert len(data) == len(data.images) == len(data.labels)
        assert data.labels.bincount(minlength=len(data.classes)).min() > 0
        assert data.labels.max() == len(data.classes) - 1
        assert torch.equal(data.preprocess.mean, parts["train"].preprocess.mean)


def test_it_is_read_again_as_a_run_stores_it(parts: dict[str, Any]) -> None:
    for data in parts.values():
        stored = of_data(data)
        again = mp.load_dataset(**stored["loaded"])
        assert of_data(again) == stored
        if data.name in GENERATIVE:
            assert (again.split, again.noise) == (data.split, 0.5)
        else:
            assert torch.equal(again.images, data.images)


def test_episodes_show_the_images_of_their_classes(parts: dict[str, Any]) -> None:
    for data in parts.values():
        if data.name in GENERATIVE:
            batch = mp.EpisodeSampler(data, 1, 4, 6).batch(3, 5)
            assert batch.support_x.shape == batch.support_y.shape == (5, 4, 1)
            assert batch.query_y.shape == (5, 6, 1)
            continue
        ways = min(2, len(data.classes))
        batch = mp.EpisodeSampler(data, ways, 1, 2).batch(3, 5)
        for part in ("support", "query"):
            index, y = getattr(batch, f"{part}_index"), getattr(batch, f"{part}_y")
            assert torch.equal(getattr(batch, f"{part}_x"), data.images[index])
            assert torch.equal(data.labels[index], batch.classes.gather(1, y))
        together = torch.cat([batch.support_index, batch.query_index], 1)
        assert all(len(row.unique()) == 3 * ways for row in together)
        assert all(len(row.unique()) == ways for row in batch.classes)

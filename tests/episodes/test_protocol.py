"""Protocols and their index lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.episodes.listing import dump, verify
from tests.episodes.helpers import numbered

OPTIONS: list[dict[str, Any]] = [
    {},
    {"ways": (2, 4), "shots": (1, 3), "imbalanced": True},
    {"rotations": True},
]


def test_a_protocol_says_what_the_sampler_does() -> None:
    sampler = mp.EpisodeSampler(numbered(split="test"), 5, 1, 3, seed=4, shift=True)
    protocol = mp.Protocol.of(sampler, 600, inner_steps=5, norm="running", head="zero")
    assert protocol.as_dict() == {
        "data": "data",
        "split": "test",
        "split_hash": numbered(split="test").split_hash,
        "ways": 5,
        "shots": 1,
        "queries": 3,
        "episodes": 600,
        "seed": 4,
        "shift": "blur+invert+pixelate+stripes+wave",
        "augment": "none",
        "rotations": False,
        "imbalanced": False,
        "inner_steps": 5,
        "norm": "running",
        "head": "zero",
        "precision": "float32",
        "interval": "95 % t",
    }
    line = str(protocol)
    assert "\n" not in line
    for part in (
        "data/test@",
        "5-way 1-shot 3-query x600",
        "seed 4",
        "blur",
        "5 steps",
        "norm running",
        "head zero",
    ):
        assert part in line


@pytest.mark.parametrize("options", OPTIONS)
def test_a_protocol_survives_json(options: dict[str, Any]) -> None:
    sampler = mp.EpisodeSampler(numbered(), **{"ways": 5, "shots": 1, "queries": 3, **options})
    protocol = mp.Protocol.of(sampler, 10)
    assert mp.Protocol.from_dict(json.loads(json.dumps(protocol.as_dict()))) == protocol
    with pytest.raises(ValueError, match="not the fields of a protocol"):
        mp.Protocol.from_dict({"data": "x"})


@pytest.mark.parametrize("options", OPTIONS)
def test_dumped_lists_are_what_the_sampler_draws_and_verify(options: dict[str, Any], tmp_path: Path) -> None:
    data = numbered()
    sampler = mp.EpisodeSampler(data, **{"ways": 5, "shots": 1, "queries": 3, "seed": 9, **options})
    written = dump(sampler, 300, tmp_path / "list.json")
    assert verify(tmp_path / "list.json", data) == written
    content = json.loads((tmp_path / "list.json").read_text())
    assert content["query_index"][299] == sampler[299].query_index.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["list.json"]


def _swap(content: dict[str, Any]) -> None:
    rows = content["support_index"]
    rows[3], rows[4] = rows[4], rows[3]
    for part in ("classes", "query_index"):
        content[part][3], content[part][4] = content[part][4], content[part][3]


def _repeat(content: dict[str, Any]) -> None:
    content["query_index"][7][1] = content["query_index"][7][0]


DAMAGE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (_swap, "episode 3 is not what seed 0 draws"),
    (_repeat, "episode 7 lists an image twice"),
    (
        lambda c: c["support_index"][2].__setitem__(0, 400),
        "episode 2 lists image 400, but the data set has 400",
    ),
    (
        lambda c: c["classes"][5].reverse(),
        "episode 5 lists an image under a class that it does not belong to",
    ),
    (lambda c: c["classes"].pop(), "classes must have 20 rows"),
    (lambda c: c.pop("query_index"), "is damaged"),
    (lambda c: c["query_index"][0].pop(), "list.json is damaged"),
    (lambda c: c.update(classes=[[]] * 20), "classes must hold rows of whole numbers"),
    (lambda c: c.update(classes=[1] * 20), r"classes must have 20 rows, not \(20,\)"),
    (lambda c: c.update(classes={"a": 1}), "classes must hold rows of whole numbers"),
    (lambda c: c["support_index"][0].__setitem__(0, 1.5), "support_index must hold rows of whole numbers"),
    (lambda c: c["support_index"][0].__setitem__(0, 10**30), "support_index must hold rows of whole numbers"),
    (lambda c: c["support_index"][0].__setitem__(0, None), "support_index must hold rows of whole numbers"),
    (lambda c: c["support_index"][0].__setitem__(0, -7), "episode 0 is not what seed 0 draws"),
    (lambda c: c.update(protocol=[1]), r"list.json is damaged: not the fields of a protocol: \[1\]"),
    (lambda c: c["protocol"].update(episodes=20.0), "list.json is damaged: .* episodes=20.0 must be int"),
    (lambda c: c["protocol"].update(rotations=0), "rotations=0 must be bool"),
    (lambda c: c["protocol"].update(ways=[5, "6"]), "ways=.5, '6'. must be int . tuple"),
    (lambda c: c["protocol"].update(ways=500), "list.json says what cannot be drawn from .*ways=500"),
    (lambda c: c["protocol"].update(seed=-1), "list.json says what cannot be drawn from .*seed"),
    (lambda c: c["protocol"].update(seed=1), "episode 0 is not what seed 1 draws"),
    (lambda c: c["protocol"].update(split="test"), "was drawn from split 'test', not 'train'"),
    (lambda c: c["protocol"].update(split_hash="0"), "was drawn from split_hash '0', not"),
    (lambda c: c.update(format="x"), "is no list of episodes"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_changed_file_is_found_out(damage: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    dump(mp.EpisodeSampler(numbered(), 5, 1, 3, seed=0), 20, path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(mp.DataError, match=message):
        verify(path, numbered())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(mp.DataError, match=r"cannot read .*No such file"):
        verify(tmp_path / "none.json", numbered())
    (tmp_path / "half.json").write_text('{"format": "metap')
    with pytest.raises(mp.DataError, match="is not whole JSON"):
        verify(tmp_path / "half.json", numbered())


def test_other_data_of_the_same_name_is_found_out(tmp_path: Path) -> None:
    dump(mp.EpisodeSampler(numbered(), 5, 1, 3), 5, tmp_path / "list.json")
    other = numbered()
    other.labels = torch.roll(other.labels, 1)
    with pytest.raises(mp.DataError, match="under a class that it does not belong to"):
        verify(tmp_path / "list.json", other)


def test_made_up_tasks_have_no_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sinusoid makes its tasks up"):
        dump(mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, 5, 5), 5, tmp_path / "list.json")
    assert not list(tmp_path.iterdir())

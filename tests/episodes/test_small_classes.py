"""Classes of unequal size: left out, capped, or with all the rest as queries."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import metapeft as mp
from metapeft.episodes.settings import built_episodes, of_episodes
from tests.episodes.helpers import DATA, digest, make, numbers, same

COUNTS = [2, 3, 4, 6, 9, 14, 1]


def uneven(counts: list[int] = COUNTS, name: str = "data") -> mp.ImageData:
    """Image i holds its number; class c has `counts[c]` images, in no order."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 1] = torch.arange(len(labels))
    images[:, 0, 1, :] = 99
    return mp.ImageData(images, labels, [f"c{i}" for i in range(len(counts))], name=name)


def shown(batch: mp.EpisodeBatch, task: int) -> dict[int, tuple[list[int], list[int]]]:
    """Class -> the places of its support and query images that count."""
    one = batch.episode(task)
    found: dict[int, tuple[list[int], list[int]]] = {}
    for way, name in enumerate(one.classes.tolist()):
        if name >= 0:
            parts = []
            for part in ("support", "query"):
                index, y, mask = (getattr(one, f"{part}_{field}") for field in ("index", "y", "mask"))
                mask = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
                parts.append(index[mask & (y == way)].tolist())
            found[name] = parts[0], parts[1]
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ways": 3, "shots": 2, "queries": 2, "small": "skip"}, {2: 2, 3: 2, 4: 2, 5: 2}),
        ({"ways": 3, "shots": 1, "queries": 5, "small": "cap"}, {0: 1, 1: 2, 2: 3, 3: 5, 4: 5, 5: 5}),
        ({"ways": 3, "shots": 2, "queries": 90, "small": "cap"}, {1: 1, 2: 2, 3: 4, 4: 7, 5: 12}),
        ({"ways": 3, "shots": 2, "queries": "rest", "small": "skip"}, {1: 1, 2: 2, 3: 4, 4: 7, 5: 12}),
    ],
)  # fmt: skip
def test_which_classes_and_how_many_queries(options: dict[str, Any], expected: dict[int, int]) -> None:
    data = uneven()
    sampler = mp.EpisodeSampler(data, seed=0, **options)
    assert sampler.left_out == tuple(f"c{i}" for i in range(7) if i not in expected)
    batch = sampler.batch(0, 200)
    seen: dict[int, int] = {}
    for task in range(200):
        for name, (support, query) in shown(batch, task).items():
            assert len(support) == options["shots"]
            assert seen.setdefault(name, len(query)) == len(query)
            assert len({*support, *query}) == len(support) + len(query)
            assert set(data.labels[support + query].tolist()) == {name}
    assert seen == expected
    most = max(expected.values())
    assert batch.query_x.shape[:2] == (200, 3 * most)
    assert torch.equal(
        numbers(batch.query_x)[batch.query_index >= 0], batch.query_index[batch.query_index >= 0]
    )
    assert (batch.query_mask is None) == (len(set(expected.values())) == 1)
    assert batch.support_mask is None
    if batch.query_mask is not None:
        assert torch.equal(batch.query_mask, batch.query_index >= 0)
        assert not batch.query_x[~batch.query_mask].any()
        assert not batch.query_y[~batch.query_mask].any()


@pytest.mark.parametrize("imbalanced", [False, True])
@given(start=st.integers(0, 2**60), low=st.integers(1, 3), queries=st.sampled_from([1, 4, 30, "rest"]))
@settings(max_examples=25, deadline=None)
def test_with_shots_that_vary(imbalanced: bool, start: int, low: int, queries: Any) -> None:
    """All that is no support image of the episode is a query, up to as many as are asked for."""
    data = uneven()
    small = "skip" if queries == "rest" else "cap"
    sampler = mp.EpisodeSampler(
        data, (2, 4), (low, 3), queries, start % 1000, small=small, imbalanced=imbalanced and low < 3
    )
    batch = sampler.batch(start, 4)
    for task in range(4):
        found = shown(batch, task)
        assert 2 <= len(found) <= 4
        for name, (support, query) in found.items():
            left = COUNTS[name] - len(support)
            assert len(query) == (left if queries == "rest" else min(left, queries))
            assert len({*support, *query}) == len(support) + len(query)
            assert low <= len(support) <= 3
    assert same(batch.tasks(slice(2, 3)), sampler.batch(start + 2, 1))
    assert same(batch, mp.EpisodeBatch.stack([sampler[start + i] for i in range(4)]))


def test_uniform_over_the_classes_that_stay_and_their_images() -> None:
    data = uneven()
    for options in (
        {"queries": 3, "small": "skip"},
        {"queries": 2, "small": "cap"},
        {"queries": "rest", "small": "skip"},
    ):
        sampler = mp.EpisodeSampler(data, 2, 2, seed=1, **options)  # type: ignore[arg-type]
        lists = sampler.lists(0, 20_000)
        kept = [i for i in range(7) if f"c{i}" not in sampler.left_out]
        counts = lists["classes"].flatten().bincount(minlength=7)
        assert stats.chisquare(counts[kept]).pvalue > 0.001
        assert int(counts.sum()) == int(counts[kept].sum())
        for name in kept:
            images = torch.cat([lists["support_index"], lists["query_index"]], 1).flatten()
            own = images[images >= 0].bincount(minlength=len(data))[data.labels == name]
            assert stats.chisquare(own).pvalue > 0.001


def test_a_small_class_beside_a_huge_one() -> None:
    """Of which images are drawn in another way: episodes do not depend on what else is in the batch."""
    labels = torch.tensor([0, 0, 1, 1, 1] + [2] * 3000)
    data = mp.data(torch.zeros(len(labels), 1), labels)
    sampler = mp.EpisodeSampler(data, 2, 1, 5, small="cap")
    batch = sampler.batch(0, 20)
    assert all(same(sampler.batch(i, 1), batch.tasks(slice(i, i + 1))) for i in range(20))
    counts = {name: len(query) for i in range(20) for name, (_, query) in shown(batch, i).items()}
    assert counts == {0: 1, 1: 2, 2: 5}


def test_what_is_large_enough_is_drawn_as_before() -> None:
    """Of classes with images enough nothing changes, and no mask comes with it."""
    for options in (
        {"ways": 5},
        {"ways": (2, 7), "shots": (1, 4)},
        {"ways": 3, "shots": (1, 4), "imbalanced": True},
    ):
        for small in ("skip", "cap"):
            assert same(make({**options, "small": small}).batch(3, 50), make(options).batch(3, 50))
    rest = mp.EpisodeSampler(DATA, 5, 2, "rest").batch(0, 9)
    assert rest.query_mask is None
    assert rest.query_x.shape[1] == 5 * 18
    assert torch.equal(
        rest.query_index.view(9, 5, 18)[..., :3].flatten(1),
        mp.EpisodeSampler(DATA, 5, 2, 3).batch(0, 9).query_index,
    )


def test_the_draws_are_those_that_were_recorded() -> None:
    """Recorded when they were written; a change makes every published index list void."""
    found = mp.EpisodeSampler(uneven(), 3, (1, 2), "rest", seed=0, small="skip").lists(0, 500)
    assert [digest(found[name]) for name in ("classes", "support_index", "query_index")] == [
        "f32bb69839d82f0c", "aa16b12acfc2cf9a", "bbeb13170cfddd00",
    ]  # fmt: skip


def test_what_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "metapeft"):
        sampler = mp.EpisodeSampler(uneven(), 2, 2, 2, small="skip")
        sampler.batch(0, 2)
    assert [row.message for row in caplog.records] == [
        "data: 3 of 7 classes have fewer than 4 images and are left out, such as 'c0'"
    ]
    assert repr(sampler) == "EpisodeSampler(data/train: 2-way 2-shot, 2 queries, seed 0, small classes: skip)"


def test_in_settings_protocol_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = uneven()
    for options in ({"queries": 4, "small": "cap"}, {"queries": "rest", "small": "skip"}):
        sampler = mp.EpisodeSampler(data, 3, (1, 2), **options)  # type: ignore[arg-type]
        spec = of_episodes(sampler)["sampler"]
        assert spec["small"] == options["small"]
        assert spec["queries"] == options["queries"]
        protocol = mp.Protocol.of(sampler, 9)
        assert f"small classes: {options['small']}" in str(protocol)
        assert f"{options['queries']}-query" in str(protocol)
        assert mp.Protocol.from_dict(protocol.as_dict()) == protocol
        mp.dump(sampler, 40, tmp_path / "list.json")
        assert mp.verify(tmp_path / "list.json", data) == mp.Protocol.of(sampler, 40)
    plain = mp.EpisodeSampler(DATA, 3, 1, 2)
    assert "small" not in {**of_episodes(plain)["sampler"], **mp.Protocol.of(plain, 1).as_dict()}
    data.loaded = {"name": "uneven"}
    monkeypatch.setattr("metapeft.episodes.settings.load_dataset", lambda name: {"uneven": data}[name])
    for options in ({"queries": "rest", "small": "skip"}, {"queries": 3, "small": "cap"}):
        own = mp.EpisodeSampler(data, 3, 1, **options)  # type: ignore[arg-type]
        again = built_episodes(of_episodes(own), "episodes")
        assert (again.queries, again.small) == (options["queries"], options["small"])
        assert same(again.batch(0, 2), own.batch(0, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 15}, r"queries=15 need 16 images a class, but class 'c6' of data has 1: small=\"skip\" leaves out "
                          r"classes with fewer \(7 of 7 here\), small=\"cap\" takes the queries that there are"),
        ({"queries": "rest"}, r"class 'c6' of data has 1: small=\"skip\" leaves out .* fewer \(1 of 7 here\)$"),
        ({"queries": 5, "small": "skip"}, "ways=5 needs 5 classes, but only 3 of the 7 of data in its train split"),
        ({"shots": 5, "queries": 1, "small": "cap"}, "only 3 of the 7 of data in its train split have 6 images"),
        ({"queries": "all"}, "queries='all': allowed is a whole number of at least 1, or \"rest\""),
        ({"small": "drop"}, "small='drop': allowed are 'refuse', 'skip', 'cap'"),
        ({"queries": "rest", "small": "cap"}, "small=\"cap\" has no effect on queries=\"rest\""),
    ],
)  # fmt: skip
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.EpisodeSampler(uneven(), **options)


@pytest.mark.parametrize("options", [{"queries": "rest"}, {"small": "skip"}])
def test_tasks_that_are_made_up_have_no_small_classes(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the tasks of sinusoid are made up"):
        mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, **options)


@pytest.mark.parametrize("form", ["tensor", "dict", "tuple"])
def test_tokens_and_features(form: str) -> None:
    """What is padded is a row that a network can read: of inputs in a dict no mask of zeros."""
    labels = torch.arange(7).repeat_interleave(torch.tensor(COUNTS))
    ids = torch.arange(len(labels))[:, None] + 5
    x: Any = {"ids": ids, "mask": torch.ones_like(ids)}
    data = mp.data({"tensor": ids, "dict": x, "tuple": tuple(x.values())}[form], labels)
    batch = mp.EpisodeSampler(data, (2, 3), 2, "rest", small="skip").batch(0, 6)
    first = {"tensor": lambda x: x, "dict": lambda x: x["ids"], "tuple": lambda x: x[0]}[form](batch.query_x)
    assert torch.equal(first[..., 0][batch.query_mask], batch.query_index[batch.query_mask] + 5)
    if form == "dict":
        assert batch.query_x["mask"].all()


@pytest.mark.parametrize("form", ["images", "dict"])
def test_mixed(form: str) -> None:
    """Query sets are padded to the widest; a sampler whose own do not vary gets a mask of ones."""

    def data(counts: list[int], name: str) -> Any:
        images = uneven(counts, name)
        return images if form == "images" else mp.data({"x": images.images.float()}, images.labels, name=name)

    parts = {"a": data([6, 6, 6], "a"), "b": data(COUNTS, "b"), "c": data([3, 9], "c")}
    samplers = {name: mp.EpisodeSampler(one, 2, 2, "rest", small="skip") for name, one in parts.items()}
    mixed = mp.MixedSampler(samplers, seed=3)
    batch = mixed.batch(0, 30)
    assert batch.query_y.shape == (30, 2 * 12)
    for task, kind in enumerate(batch.kind.tolist()):
        own = samplers[mixed.kinds[kind]].batch(task, 1)
        assert shown(batch, task) == shown(own, 0)
        there = batch.query_mask[task]
        own_there = slice(None) if own.query_mask is None else own.query_mask[0]
        for found, expected in zip(_leaves(batch.query_x), _leaves(own.query_x)):
            assert torch.equal(found[task][there], expected[0][own_there])
    if form == "images":
        assert same(mixed.batch(4, 2), batch.tasks(slice(4, 6)))
    assert mixed.small == "skip"
    other = {**samplers, "c": mp.EpisodeSampler(parts["c"], 2, 2, 3, small="cap")}
    with pytest.raises(ValueError, match="queries is rest in 'a' and 3 in 'c'"):
        mp.MixedSampler(other)
    capped = {name: mp.EpisodeSampler(one, 2, 2, 4, small="cap") for name, one in parts.items()}
    assert mp.MixedSampler(capped).batch(0, 9).query_y.shape == (9, 8)


def _leaves(x: Any) -> list[Any]:
    return list(x.values()) if isinstance(x, dict) else [x]

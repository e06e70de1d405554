"""Kinds of tasks: samplers know them without images, and find partners of the same kind and of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import metapeft as mp
from metapeft.base import counter
from metapeft.episodes.shift import OF_SPLIT, training_styles
from tests.episodes.helpers import DATA, make, numbers, same

HALVES = {"shift": mp.Shift(["plain", "swap"])}


class Signs:
    """Tasks `y = x` and, three times as often, `y = -x`."""

    name, split, split_hash, classes = "signs", "train", "0", None
    kinds = ("up", "down")

    def kinds_of(self, keys: counter.Words) -> counter.Integers:
        return (counter.uniforms(keys, 1)[:, 0] >= 0.25).astype(np.int64)

    def draw(self, keys: counter.Words, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy(counter.uniforms(keys, 1 + count)[:, 1:])[..., None].float()
        return x, x * torch.from_numpy(1 - 2 * self.kinds_of(keys))[:, None, None]


def signs(**options: Any) -> mp.EpisodeSampler:
    return mp.EpisodeSampler(Signs(), 1, 3, 4, **options)


def test_the_kind_of_a_shift_is_the_one_that_its_images_show() -> None:
    sampler = make(HALVES)
    assert sampler.kinds == ("plain", "swap")
    batch = sampler.batch(0, 300)
    for kind, images in enumerate((batch.support_x, batch.support_x.roll(2, -1))):
        assert torch.equal((numbers(images) == batch.support_index).all(1), batch.kind == kind)
    assert batch.kind.dtype == torch.int64
    assert 110 < int(batch.kind.sum()) < 190
    assert sampler[7].kind.shape == ()
    assert int(sampler[7].kind) == int(batch.kind[7])
    assert batch.to("meta").kind.device.type == "meta"
    assert torch.equal(batch.tasks(slice(4, 9)).kind, batch.kind[4:9])
    stacked = mp.EpisodeBatch.stack([batch.episode(4), batch.episode(5)])
    assert torch.equal(stacked.kind, batch.kind[4:6])


def test_kinds_are_known_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for sampler in (make(HALVES), make({"shift": True}), signs()):
        kinds = sampler.batch(5, 40).kind
        if not sampler.generative:
            monkeypatch.setattr(sampler.dataset, "gather", None)
        found = sampler.kind_of(np.arange(5, 45))
        assert found.dtype == np.int64
        assert found.tolist() == kinds.tolist() == sampler.kind_of(torch.arange(5, 45)).tolist()
        monkeypatch.undo()


def test_a_name_that_is_given_twice_is_one_kind() -> None:
    styles = training_styles()
    sampler = make({"shift": styles})
    assert sampler.kinds == ("plain", *OF_SPLIT["train"])
    counts = np.bincount(sampler.kind_of(range(4000)), minlength=6)
    assert stats.chisquare(counts, 4000 * np.array([5, 1, 1, 1, 1, 1]) / 10).pvalue > 0.001


def test_the_family_of_tasks_says_its_kinds() -> None:
    batch = signs().batch(0, 400)
    falls = (batch.query_y < 0).all(1).flatten()
    assert torch.equal(batch.kind, falls.long())
    assert 260 < int(falls.sum()) < 340


@pytest.mark.parametrize(
    "options", [{}, {"augment": mp.Augment(crop=1)}, {"shift": lambda images, _: images}]
)
def test_without_kinds_there_is_none(options: dict[str, Any]) -> None:
    sampler = make(options)
    assert sampler.kinds == ()
    assert sampler.batch(0, 2).kind is None
    assert sampler[0].kind is None
    with pytest.raises(ValueError, match="knows no kinds of tasks"):
        sampler.kind_of([0])
    with pytest.raises(ValueError, match="knows no kinds of tasks"):
        sampler.partners([0], same_kind=False)
    assert (sampler.partners(range(50), same_kind=True) != np.arange(50)).all()


def test_episodes_at_any_numbers() -> None:
    for options in ({}, HALVES, {"ways": (2, 4)}):
        sampler = make(options)
        which = [9, 3, 2**63 - 2, 3]
        assert same(sampler.at(which), mp.EpisodeBatch.stack([sampler[i] for i in which]))
        assert same(sampler.at(torch.arange(5, 9)), sampler.batch(5, 4))
        assert same(sampler.at(np.arange(5, 9, dtype=np.uint8)), sampler.batch(5, 4))


@pytest.mark.parametrize("same_kind", [True, False])
@pytest.mark.parametrize("sampler", [make(HALVES), make({"shift": True}), signs(), signs(episodes=20)])
def test_partners_are_other_episodes_of_the_kind_that_is_asked_for(
    sampler: mp.EpisodeSampler, same_kind: bool
) -> None:
    asked = np.arange(20)
    found = sampler.partners(asked, same_kind)
    assert found.dtype == np.int64
    assert (found != asked).all()
    assert ((found >= 0) & (found < len(sampler))).all()
    assert ((sampler.kind_of(found) == sampler.kind_of(asked)) == same_kind).all()
    one_by_one = [int(sampler.partners([number], same_kind)[0]) for number in (7, 3, 19)]
    assert one_by_one == found[[7, 3, 19]].tolist()  # whatever else is in the batch
    assert sampler.partners(asked[::-1], same_kind).tolist() == found[::-1].tolist()


def test_partners_are_uniform_over_the_episodes_of_their_kind() -> None:
    """From another seed each time; a partner is the first of a stream that fits, so each fitting one is as likely."""
    found = np.array([make({**HALVES, "episodes": 40}, seed).partners([0, 39], True) for seed in range(1500)])
    for own, column in zip((0, 39), found.T):
        counts = np.bincount(column, minlength=40)
        assert counts[own] == 0
        assert stats.chisquare(np.delete(counts, own)).pvalue > 0.001


def test_partners_are_those_that_were_published() -> None:
    """Recorded when partners came: controls of stored tables depend on them."""
    assert make(HALVES).partners([0, 1], True).tolist() == [5163786634361424813, 5905897617109991092]
    assert make({**HALVES, "episodes": 600}).partners([0, 1, 599], False).tolist() == [398, 191, 1]


BAD: list[tuple[dict[str, Any], Any, bool, str]] = [
    ({"shift": mp.Shift(["invert"])}, [0], False, "all episodes are of the one kind 'invert'"),
    ({"episodes": 1}, [0], True, "episodes=1 has no other episode"),
    ({**HALVES, "episodes": 2, "seed": 3}, [0], True, "episode 0 has no partner of its kind among 1024"),
    (HALVES, [], True, r"numbers: an array \(T,\) of whole numbers is needed"),
    (HALVES, [[1]], True, r"not int64 \(1, 1\)"),
    (HALVES, [0.5], True, r"not float64 \(1,\)"),
    (HALVES, [True], True, r"not bool \(1,\)"),
    (HALVES, [3, -1], True, "numbers holds -1: allowed are whole numbers from 0 to"),
    ({**HALVES, "episodes": 9}, [3, 9], True, "numbers holds 9: allowed are whole numbers from 0 to 8"),
    (HALVES, np.array([2**63], dtype=np.uint64), True, "numbers holds 9223372036854775808"),
]


@pytest.mark.parametrize(("options", "asked", "same_kind", "message"), BAD)
def test_refused(options: dict[str, Any], asked: Any, same_kind: bool, message: str) -> None:
    sampler = mp.EpisodeSampler(DATA, **{"ways": 2, "queries": 2, **options})
    with pytest.raises(ValueError, match=message):
        sampler.partners(asked, same_kind)
    if message.startswith("numbers"):
        for method in (sampler.at, sampler.kind_of):
            with pytest.raises(ValueError, match=message):
                method(asked)


def test_the_question_is_yes_or_no() -> None:
    with pytest.raises(ValueError, match="same_kind='no': allowed are True and False"):
        make(HALVES).partners([0], "no")  # type: ignore[arg-type]


def test_evaluations_do_not_look_at_the_kind() -> None:
    from metapeft.training.fingerprints import fingerprints

    batch = make(HALVES).batch(0, 3)
    without = mp.EpisodeBatch(**{**batch.fields(), "kind": None})
    assert fingerprints(batch) == fingerprints(without)

"""Mixtures: each episode is one of a sampler's own, chosen by a hash under the weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import metapeft as mp
from metapeft.episodes.settings import built_episodes, of_episodes
from tests.episodes.helpers import DATA, make, numbered, same

OTHER = numbered(classes=9, split="val")
PARTS = {"plain": make({}), "swapped": make({"shift": mp.Shift(["swap"])})}


def mixed(**options: Any) -> mp.MixedSampler:
    return mp.MixedSampler(PARTS, **options)


def sinusoids(**options: Any) -> mp.EpisodeSampler:
    return mp.EpisodeSampler(mp.load_dataset("sinusoid"), **{"ways": 1, "shots": 4, "queries": 3, **options})


def three() -> mp.MixedSampler:
    """Of made-up tasks, seeds apart."""
    return mp.MixedSampler({name: sinusoids(seed=seed) for seed, name in enumerate("abc")}, [1, 2, 5], seed=3)


@pytest.mark.parametrize("sampler", [mixed(), three(), mp.MixedSampler({"a": make({"ways": (2, 5)})})])
def test_every_episode_is_that_of_its_sampler(sampler: mp.MixedSampler) -> None:
    batch = sampler.batch(4, 12)
    for task in range(12):
        one = sampler.samplers[sampler.kinds[int(batch.kind[task])]]
        own = dataclasses.replace(batch.tasks(slice(task, task + 1)), kind=None)
        assert same(own, dataclasses.replace(one.batch(4 + task, 1), kind=None))
    assert sampler.kind_of(range(4, 16)).tolist() == batch.kind.tolist()
    assert all(value.is_contiguous() for value in batch.fields().values() if value is not None)


def test_an_episode_does_not_depend_on_its_batch() -> None:
    sampler = mixed()
    whole = sampler.batch(3, 8)
    assert same(whole, mp.EpisodeBatch.stack([sampler[i] for i in range(3, 11)]))
    assert same(whole, mixed().at(np.arange(3, 11)))
    assert same(sampler.at([10, 3, 5]), mp.EpisodeBatch.stack([sampler[i] for i in (10, 3, 5)]))
    assert mixed(seed=1).batch(0, 30).kind.tolist() != sampler.batch(0, 30).kind.tolist()


def test_samplers_come_as_often_as_their_weights_say() -> None:
    assert three().kinds == ("a", "b", "c")
    counts = np.bincount(three().kind_of(range(8000)))
    assert stats.chisquare(counts, 8000 * np.array([1, 2, 5]) / 8).pvalue > 0.001
    kinds = mixed().kind_of(range(8000))
    assert stats.chisquare(np.bincount(kinds)).pvalue > 0.001
    table = np.bincount(2 * kinds[1:] + kinds[:-1], minlength=4).reshape(2, 2)  # nor by turns
    assert stats.chi2_contingency(table).pvalue > 0.001
    named = mp.MixedSampler(PARTS, {"swapped": 3, "plain": 1})
    assert named.weights == (1.0, 3.0)


def test_the_choice_has_keys_of_its_own() -> None:
    """What chooses the sampler draws nothing in a sampler of the same seed."""
    own, those = (set(sampler._keys(np.arange(500)).ravel().tolist()) for sampler in (mixed(), make({})))
    assert not own & those
    batch = mixed().batch(0, 4000)
    table = torch.bincount(batch.classes[:, 0] * 2 + batch.kind, minlength=40).view(20, 2)
    assert stats.chi2_contingency(table.numpy()).pvalue > 0.001


@pytest.mark.parametrize("same_kind", [True, False])
def test_partners(same_kind: bool) -> None:
    sampler = three()
    found = sampler.partners(range(60), same_kind)
    assert ((sampler.kind_of(found) == sampler.kind_of(range(60))) == same_kind).all()
    assert int(sampler.partners([31], same_kind)[0]) == found[31]


def test_the_numbers_that_all_samplers_have() -> None:
    parts = {"long": make({"episodes": 50}), "short": make({"episodes": 20})}
    sampler = mp.MixedSampler(parts)
    assert len(sampler) == sampler.episodes == 20
    with pytest.raises(ValueError, match="from 0 to 19"):
        sampler.batch(19, 2)
    assert (sampler.partners(range(20), same_kind=False) < 20).all()


def test_the_protocol_says_what_was_mixed() -> None:
    protocol = mp.Protocol.of(mixed(seed=4), 600)
    assert (protocol.data, protocol.split) == ("mixed(plain, swapped)", "train")
    assert (protocol.ways, protocol.shots, protocol.queries, protocol.seed) == (5, 1, 3, 4)
    assert protocol.shift == "plain: none, swapped: swap"
    assert mp.Protocol.from_dict(json.loads(json.dumps(protocol.as_dict()))) == protocol
    splits = mp.MixedSampler({"a": make({}), "b": mp.EpisodeSampler(OTHER, 5, 1, 3)})
    assert splits.dataset.split == "train+val"


def test_the_hash_tells_mixtures_apart() -> None:
    """Weights, data, what changes images, and seeds that are not the mixture's own."""
    many = [
        mixed(), mixed(weights=[1, 2]), mp.MixedSampler({"plain": make({}), "swapped": make({})}),
        mp.MixedSampler({**PARTS, "plain": make({}, seed=5)}),
        mp.MixedSampler({**PARTS, "plain": mp.EpisodeSampler(OTHER, 5, 1, 3)}),
    ]  # fmt: skip
    assert len({sampler.dataset.split_hash for sampler in many}) == len(many)
    again = [mp.MixedSampler({"a": make({}, seed=seed)}, seed=seed).dataset for seed in (0, 7)]
    assert again[0] == again[1]  # the protocol has the seed
    assert mixed(weights=[3, 3]).dataset == mixed().dataset


def test_a_run_stores_it_and_builds_it_again() -> None:
    data = {seed: mp.load_dataset("glyphs", split="val", per_class=3, size=16, seed=seed) for seed in (0, 1)}
    parts = {
        "z": mp.EpisodeSampler(data[0], 3, 1, 2, seed=2, shift=mp.Shift(["plain", "invert"])),
        "a": mp.EpisodeSampler(data[1], 3, 1, 2, seed=5, episodes=40),
    }
    sampler = mp.MixedSampler({"both": mp.MixedSampler(parts, [1, 3]), "alone": parts["z"]}, seed=9)
    stored = json.loads(json.dumps(of_episodes(sampler), sort_keys=True))
    again = built_episodes(stored, "episodes")
    assert again.kinds == sampler.kinds
    assert again.samplers["both"].kinds == ("z", "a")
    assert of_episodes(again) == of_episodes(sampler)
    assert same(again.batch(0, 10), sampler.batch(0, 10))
    with pytest.raises(ValueError, match="episodes= is missing: the run had episodes that cannot be built"):
        built_episodes(of_episodes(mixed()), "episodes")  # of data in memory


def test_it_is_evaluated_and_trained_on(tmp_path: Path) -> None:
    learner = mp.Learner(
        mp.attach(mp.backbones.mlp(1, 1, hidden=(8,)), mp.Full()), mp.inner.SGD(1, 0.01),
        loss=torch.nn.functional.mse_loss,
    )  # fmt: skip
    result = mp.evaluate(learner, three(), episodes=6)
    assert result.protocol is not None
    assert result.protocol.data == "mixed(a, b, c)"
    alone = mp.evaluate(learner, three().samplers["c"], episodes=6)
    mine = three().kind_of(range(6)) == 2
    assert mine.any()
    torch.testing.assert_close(result.losses[mine], alone.losses[mine])
    trainer = mp.BilevelTrainer(learner, progress=False, tasks_per_step=3)
    trainer.fit(three(), 2, run_dir=tmp_path / "x")
    assert trainer.step == 2


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ({}, {}, "samplers is empty"),
    ([make({})], {}, "samplers is of type list: a dict, name -> sampler"),
    ({"a": DATA}, {}, r"samplers\['a'\] is of type ImageData: an mp.EpisodeSampler is needed"),
    ({"a": make({}), "b": make({"ways": 4})}, {}, "'a' and 'b' do not fit together: ways is 5 in 'a' and 4 in 'b'"),
    ({"a": make({}), "b": make({"queries": 4})}, {}, "queries is 3 in 'a' and 4 in 'b'"),
    (
        {"a": make({}), "b": mp.EpisodeSampler(numbered(side=5), 5, 1, 3)}, {},
        r"support_x is uint8 \(5, 1, 4, 4\) on cpu in 'a' and uint8 \(5, 1, 5, 5\) on cpu in 'b'",
    ),
    ({"a": sinusoids(shots=1, queries=3), "b": make({"ways": 1})}, {}, "support_x is float32 .* and uint8 "),
    (PARTS, {"weights": [1]}, r"weights=\[1\]: allowed is a number for each of plain, swapped"),
    (PARTS, {"weights": {"plain": 1, "other": 2}}, "allowed is a number for each of plain, swapped"),
    (PARTS, {"weights": [1, 0]}, r"weights\['swapped'\]=0: allowed is a finite number above 0"),
    (PARTS, {"weights": [1, float("nan")]}, "allowed is a finite number above 0"),
    (PARTS, {"weights": 3}, "weights=3: allowed"),
    (PARTS, {"seed": -1}, "seed=-1: allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("samplers", "options", "message"), BAD)
def test_refused(samplers: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.MixedSampler(samplers, **options)


def test_lists_are_written_of_one_sampler(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sampler is of type MixedSampler: lists are written of an mp\.Ep"):
        mp.dump(mixed(), 3, tmp_path / "list.json")  # type: ignore[arg-type]

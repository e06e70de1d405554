"""Evaluations: intervals, pairs, protocols; tuning on them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import metapeft as mp
from metapeft.base.intervals import mean_interval
from metapeft.datasets.images import ImageData
from metapeft.generators.control import OtherTask
from metapeft.training.tuning import calibrated_scale, grid, inner_steps, tune
from tests.training.helpers import learner, sampler


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50), st.sampled_from([0.8, 0.95, 0.99]))
def test_intervals_are_scipys(values: list[float], level: float) -> None:
    mean, half = mean_interval(torch.tensor(values, dtype=torch.float64), level)
    error = scipy.stats.sem(values)
    expected = error * scipy.stats.t.ppf(0.5 + level / 2, len(values) - 1)
    assert mean == pytest.approx(sum(values) / len(values), rel=1e-12, abs=1e-300)
    assert half == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_one_episode_has_no_interval() -> None:
    assert mean_interval(torch.tensor([0.5]))[1] == math.inf


def test_an_evaluation_and_its_protocol() -> None:
    own = learner()
    result = mp.evaluate(own, sampler("val"), 7, steps=3, tasks_per_batch=3)
    assert result.values.shape == (7,)
    assert result.accuracy == pytest.approx(float(result.values.mean()), rel=1e-6)
    protocol = result.protocol
    assert protocol is not None
    assert (protocol.ways, protocol.shots, protocol.queries, protocol.episodes) == (3, 1, 2, 7)
    assert (protocol.split, protocol.norm, protocol.head, protocol.inner_steps) == (
        "val",
        "support",
        "prototype-init",
        3,
    )
    single = mp.evaluate(own, sampler("val"), 7, steps=3, tasks_per_batch=1)
    torch.testing.assert_close(single.losses, result.losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("episodes", "most", "sizes"), [(9, 8, [4, 5]), (8, 8, [8]), (7, 3, [2, 2, 3]), (1, 8, [1])]
)
def test_batches_are_of_equal_sizes(episodes: int, most: int, sizes: list[int]) -> None:
    """A control that takes another task's features would meet a batch of one otherwise."""
    true, seen = sampler("val"), []

    class Seen:
        def batch(self, start: int, count: int) -> Any:
            seen.append((start, count))
            return true.batch(start, count)

    result = mp.evaluate(learner(), Seen(), episodes, tasks_per_batch=most)
    assert [count for _, count in seen] == sizes
    assert [start for start, _ in seen] == [sum(sizes[:place]) for place in range(len(sizes))]
    torch.testing.assert_close(
        result.losses, mp.evaluate(learner(), true, episodes).losses, rtol=1e-4, atol=1e-5
    )


def test_comparisons_are_paired() -> None:
    own = learner()
    a, b = (mp.evaluate(own, sampler("val"), 9, steps=steps) for steps in (0, 5))
    found = mp.compare(a, b)
    paired = scipy.stats.ttest_rel(a.values.double(), b.values.double()).confidence_interval(0.95)
    assert found.difference == pytest.approx((paired.low + paired.high) / 2, abs=1e-12)
    assert found.ci95 == pytest.approx((paired.high - paired.low) / 2, rel=1e-6)
    same = mp.compare(a, a)
    assert (same.difference, same.ci95) == (0.0, 0.0)


@pytest.mark.parametrize(
    "other",
    [
        {"episodes": 8},
        {"sampler": mp.EpisodeSampler(sampler("val").dataset, 3, 1, 2, seed=4)},
        {"sampler": sampler()},
    ],
)
def test_only_the_same_episodes_are_compared(other: dict[str, Any]) -> None:
    own = learner("protonet")
    a = mp.evaluate(own, sampler("val"), 9)
    b = mp.evaluate(own, other.get("sampler", sampler("val")), other.get("episodes", 9))
    with pytest.raises(ValueError, match="episodes"):
        mp.compare(a, b)


def test_what_an_episode_holds_tells_it_apart_whatever_it_is_called() -> None:
    own, (known, data) = learner("protonet"), (sampler("val"), sampler("val").dataset)
    a = mp.evaluate(own, known, 9)
    images = data.images.clone()
    changed = int(known[4].query_index[0])
    images[changed] ^= 1
    other = ImageData(
        images, data.labels, data.classes, data.split, name=data.name, mean=[0.5], deviation=[0.3]
    )
    b = mp.evaluate(own, mp.EpisodeSampler(other, known.ways, known.shots, known.queries, known.seed), 9)
    assert a.protocol == b.protocol
    differ = [number for number, pair in enumerate(zip(a.fingerprints, b.fingerprints)) if len(set(pair)) > 1]
    assert 4 in differ
    assert differ == [number for number in range(9) if changed in drawn(known[number])]
    with pytest.raises(
        ValueError, match=f"{len(differ)} of 9, such as number {differ[0]}, have other images"
    ):
        mp.compare(a, b)
    x, y = regression()
    noisy = mp.EpisodeSampler(
        mp.load_dataset("sinusoid", split=y.dataset.split, noise=0.1), y.ways, y.shots, y.queries, y.seed
    )
    with pytest.raises(ValueError, match="data of another seed, size or noise"):
        mp.compare(mp.evaluate(x, y, 4), mp.evaluate(x, noisy, 4))


def drawn(episode: mp.Episode) -> list[int]:
    assert episode.support_index is not None
    assert episode.query_index is not None
    return [*episode.support_index.tolist(), *episode.query_index.tolist()]


def regression() -> tuple[mp.Learner, mp.EpisodeSampler]:
    body = mp.backbones.mlp(1, 1, hidden=(4,))
    own = mp.methods.maml(body, norm="running", loss=torch.nn.functional.mse_loss, lr=0.01)
    return own, mp.EpisodeSampler(mp.load_dataset("sinusoid", split="val"), 1, 5, 5)


def test_regression_has_a_loss_and_no_accuracy() -> None:
    own, episodes = regression()
    result = mp.evaluate(own, episodes, 5)
    assert not hasattr(result, "accuracy")
    with pytest.raises(AttributeError, match="read"):
        _ = result.accuracy
    assert result.loss == pytest.approx(float(result.values.mean()), rel=1e-6)
    with pytest.raises(ValueError, match="class labels"):
        mp.evaluate(mp.methods.protonet(mp.backbones.mlp(1, 1)), episodes, 2)


def test_numbers_that_are_not_finite_are_named() -> None:
    own = learner("protonet")
    own.variables["weights.conv1.weight"].fill_(float("inf"))
    with pytest.raises((mp.NumericalError, ValueError), match="finite"):
        mp.evaluate(own, sampler("val"), 4)
    with pytest.raises(ValueError, match="episodes=0"):
        mp.evaluate(own, sampler("val"), 0)


def test_tuning_takes_the_best_on_validation_and_survives_divergence() -> None:
    own, episodes = regression()

    def make(lr: float) -> mp.Learner:
        return mp.Learner(own.source, mp.inner.SGD(5, lr), loss=own.loss)

    tuned = tune(make, grid(lr=[0.0, 0.01, 1e6]), episodes, 10)
    assert tuned.settings == {"lr": 0.01}
    assert [trial["score"] for trial in tuned.trials][2] == -math.inf
    assert tuned.score == max(trial["score"] for trial in tuned.trials)
    with pytest.raises(ValueError, match="nothing to choose from"):
        tune(make, [], episodes)


def test_numbers_of_steps_that_diverge_are_left_out() -> None:
    own, episodes = regression()
    wild = mp.Learner(own.source, mp.inner.SGD(5, 1e6), loss=own.loss)
    steps, scores = inner_steps(wild, episodes, 10, (10, 0))
    assert (steps, list(scores)) == (0, [0])
    with pytest.raises(mp.NumericalError, match="every number of inner steps"):
        inner_steps(wild, episodes, 10, (10,))


def test_episodes_that_diverge_count_as_wrong_where_that_is_asked_for() -> None:
    body = mp.backbones.conv4(ways=3, channels=1, width=4, seed=0)
    episodes = sampler("val")
    own = mp.methods.sr_lora(body, inner=mp.inner.SGD(1, 0.1))
    usual = mp.evaluate(own, episodes, 5)
    assert usual.diverged == 0
    batch = type(episodes).batch

    class Spoiled:
        """The third episode's inner loss is not finite, though its images are."""

        def batch(self, start: int, count: int) -> mp.EpisodeBatch:
            found = batch(episodes, start, count)
            x = found.support_x.float()
            for task in range(count):
                if start + task == 2:
                    x[task] = 1e30
            return dataclasses.replace(found, support_x=x, query_x=found.query_x.float())

    with pytest.raises(mp.NumericalError):
        mp.evaluate(own, Spoiled(), 5)
    found = mp.evaluate(own, Spoiled(), 5, diverged="wrong")
    assert found.diverged == 1
    assert found.values[2] == 0
    assert "1 diverged" in str(found)
    with pytest.raises(ValueError, match="allowed are 'raise' and 'wrong'"):
        mp.evaluate(own, episodes, 5, diverged="skip")
    regressor, sines = regression()
    with pytest.raises(ValueError, match="a regression has none"):
        mp.evaluate(regressor, sines, 2, diverged="wrong")


def test_ties_of_accuracy_are_broken_by_the_loss_and_the_scale_is_calibrated() -> None:
    body = mp.backbones.conv4(ways=3, channels=1, width=4, seed=0)
    episodes = sampler("val")
    scale = calibrated_scale(body, episodes, 6, scales=(1e-4, 0.05, 50.0))

    def make(scale: float) -> mp.Learner:
        return mp.methods.centroids(body, head=mp.heads.Prototypes(scale=scale))

    tuned = tune(make, grid(scale=[50.0, 1e-4, 0.05]), episodes, 6)
    assert len({trial["score"] for trial in tuned.trials}) == 1  # a scale changes no prediction
    losses = {trial["scale"]: trial["loss"] for trial in tuned.trials}
    assert losses[scale] == min(losses.values())
    assert tuned.settings == {"scale": scale}


def test_a_control_that_reads_other_tasks_meets_divergence() -> None:
    """Each task keeps its neighbours, so what does not diverge has the same value whatever the others do."""
    body = mp.backbones.conv4(ways=3, channels=1, width=4, size=16)
    true, features = sampler("val"), mp.generators.MappingNet(hidden=4)
    found = {}
    for name, generator in (("own", features), ("other", OtherTask(features))):
        own = mp.Learner(
            mp.attach(body, mp.CP(4)), mp.inner.SGD(10, 25.0), head="prototype-init", outer=("factors",),
            generator=generator,
        )  # fmt: skip
        found[name] = mp.evaluate(own, true, 12, diverged="wrong", tasks_per_batch=12)
        assert 0 < found[name].diverged < 12
        assert (found[name].values[~found[name].losses.isfinite()] == 0).all()
    alone = mp.Learner(
        mp.attach(body, mp.CP(4)), mp.inner.SGD(10, 25.0), head="prototype-init", outer=("factors",),
        generator=features,
    )  # fmt: skip
    by_one = mp.evaluate(alone, true, 12, diverged="wrong", tasks_per_batch=1)
    assert torch.equal(by_one.losses.isfinite(), found["own"].losses.isfinite())
    with pytest.raises(mp.NumericalError):
        mp.evaluate(alone, true, 12)


def test_more_episodes_than_the_sampler_has_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="episodes=10: the sampler has 3"):
        mp.evaluate(learner("protonet"), sampler("val", episodes=3), 10)

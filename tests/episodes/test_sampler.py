"""Episodes: what they hold, and that nothing but the arguments decides it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader

import metapeft as mp
from metapeft.episodes import sampler as sampler_module
from tests.episodes.helpers import DATA, OPTIONS, digest, make, numbers, same


def test_shapes_and_types_are_those_of_the_contract() -> None:
    batch = mp.EpisodeSampler(DATA, ways=5, shots=2, queries=3, seed=0).batch(7, 4)
    assert batch.support_x.shape == (4, 10, 1, 4, 4)
    assert batch.support_x.dtype == torch.uint8
    assert batch.query_x.shape == (4, 15, 1, 4, 4)
    assert batch.support_y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 4
    assert batch.query_y.shape == batch.query_index.shape == (4, 15)
    assert batch.classes.shape == (4, 5)
    assert batch.support_mask is None
    assert batch.query_mask is None
    assert {value.dtype for name, value in batch.fields().items() if name.endswith(("y", "index"))} == {
        torch.int64
    }
    assert all(value.is_contiguous() for value in batch.fields().values() if value is not None)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_episode_does_not_depend_on_its_batch(options: dict[str, Any]) -> None:
    sampler = make(options)
    whole = sampler.batch(3, 8)
    parts = [sampler.batch(3, 1), sampler.batch(4, 5), sampler.batch(9, 2)]
    for part, start in zip(parts, (0, 1, 6)):
        assert same(part, whole.tasks(slice(start, start + len(part))))
    assert same(whole, mp.EpisodeBatch.stack([sampler[i] for i in range(3, 11)]))
    assert same(whole, make(options).batch(3, 8))
    assert not torch.equal(make(options, seed=1).batch(3, 8).support_index, whole.support_index)


@pytest.mark.parametrize("options", OPTIONS[:5])
@given(start=st.integers(0, 2**63 - 10), seed=st.integers(0, 2**63 - 1))
def test_images_belong_to_their_class_and_occur_once(options: dict[str, Any], start: int, seed: int) -> None:
    sampler = make(options, seed)
    batch = sampler.batch(start, 3)
    for task in range(3):
        one = batch.episode(task)
        index = torch.cat([one.support_index, one.query_index])
        labels = torch.cat([one.support_y, one.query_y])
        there = index >= 0
        assert len(index[there].unique()) == int(there.sum())
        assert torch.equal(sampler.dataset.labels[index[there]], one.classes[labels[there]])
        present = one.classes[one.classes >= 0]
        assert len(present.unique()) == len(present)
        if not options.get("rotations"):
            images = torch.cat([one.support_x, one.query_x])
            assert torch.equal(numbers(images)[there], index[there])


def test_first_thousand_episodes_are_the_ones_that_were_published() -> None:
    """Recorded when the sampler was written; a change makes every published index list void."""
    lists = mp.EpisodeSampler(DATA, 5, 1, 3, seed=0).lists(0, 1000)
    golden = {
        "classes": "9946016b43bafe5d",
        "support_index": "9a45c61c1c9889d1",
        "query_index": "8926ddc1d35df1c9",
    }
    assert {name: digest(lists[name]) for name in golden} == golden
    varied = mp.EpisodeSampler(DATA, (2, 7), (1, 4), 3, seed=0, imbalanced=True).lists(0, 1000)
    golden = {"support_index": "b1fb9dc101b82c09", "support_mask": "c2365c4fa1d13615"}
    assert {name: digest(varied[name]) for name in golden} == golden


def test_another_process_draws_the_same() -> None:
    code = (
        "from tests.episodes.helpers import OPTIONS, digest, make\n"
        "print([digest(make(options).batch(5, 3).support_x) for options in OPTIONS])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == str([digest(make(options).batch(5, 3).support_x) for options in OPTIONS])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_a_data_loader_gives_the_same_on_any_number_of_workers(workers: int) -> None:
    sampler = mp.EpisodeSampler(DATA, 5, 1, 3, seed=0, shift=True, episodes=8)
    stacked = list(DataLoader(sampler, batch_size=4, num_workers=workers, collate_fn=mp.EpisodeBatch.stack))
    assert [same(batch, sampler.batch(4 * i, 4)) for i, batch in enumerate(stacked)] == [True, True]
    single = list(DataLoader(sampler, batch_size=None, num_workers=workers))
    assert len(single) == len(sampler) == 8
    assert same(mp.EpisodeBatch.stack(single), sampler.batch(0, 8))


def test_classes_images_and_labels_are_uniform() -> None:
    lists = mp.EpisodeSampler(DATA, ways=5, shots=2, queries=3, seed=5).lists(0, 20_000)
    classes = lists["classes"]
    for way in range(5):  # no label is tied to a class
        assert stats.chisquare(classes[:, way].bincount(minlength=20)).pvalue > 0.001
    images = torch.cat([lists["support_index"], lists["query_index"]], dim=1)
    assert stats.chisquare(images.flatten().bincount(minlength=400)).pvalue > 0.001
    for place in range(10):  # nor a place in the support set to an image
        assert stats.chisquare(lists["support_index"][:, place].bincount(minlength=400)).pvalue > 0.001
    pairs = torch.bincount(classes[:, 0] * 20 + classes[:, 1], minlength=400).view(20, 20)
    assert pairs.diagonal().sum() == 0
    assert stats.chisquare(pairs[~torch.eye(20, dtype=torch.bool)]).pvalue > 0.001


def test_variable_sizes_are_padded_masked_and_uniform() -> None:
    sampler = mp.EpisodeSampler(DATA, ways=(2, 6), shots=(1, 3), queries=2, seed=0)
    batch = sampler.batch(0, 3000)
    assert batch.support_x.shape[:2] == (3000, 18)
    mask = batch.support_mask.view(3000, 6, 3)
    ways = mask.any(2).sum(1)
    shots = mask.sum(2).max(1).values
    assert stats.chisquare(ways.bincount()[2:]).pvalue > 0.001
    assert stats.chisquare(shots.bincount()[1:]).pvalue > 0.001
    assert torch.equal(mask.sum((1, 2)), ways * shots)  # balanced
    assert torch.equal(batch.classes >= 0, mask.any(2))
    assert torch.equal(batch.query_mask.view(3000, 6, 2).all(2), mask.any(2))
    for part in ("support", "query"):
        absent = ~getattr(batch, f"{part}_mask")
        assert torch.equal(getattr(batch, f"{part}_index") < 0, absent)
        assert not getattr(batch, f"{part}_x")[absent].any()
        assert not getattr(batch, f"{part}_y")[absent].any()


def test_imbalanced_episodes_draw_shots_for_each_class() -> None:
    batch = mp.EpisodeSampler(DATA, 4, (1, 3), 2, seed=0, imbalanced=True).batch(0, 4000)
    shots = batch.support_mask.view(4000, 4, 3).sum(2)
    assert stats.chisquare(shots.flatten().bincount()[1:]).pvalue > 0.001
    table = torch.bincount(shots[:, 0] * 4 + shots[:, 1], minlength=16).view(4, 4)[1:, 1:]
    assert stats.chi2_contingency(table.numpy()).pvalue > 0.001
    assert batch.query_mask.all()


def test_classes_of_unequal_size() -> None:
    labels = torch.tensor([0] * 5 + [1] * 100 + [2] * 9)
    data = mp.ImageData(torch.zeros(114, 1, 1, 1, dtype=torch.uint8), labels, ["few", "many", "some"])
    batch = mp.EpisodeSampler(data, 3, 1, 4, seed=0).batch(0, 2000)
    index = torch.cat([batch.support_index, batch.query_index], dim=1).flatten()
    counts = index.bincount(minlength=114)
    for label in range(3):
        assert stats.chisquare(counts[labels == label]).pvalue > 0.001


def test_a_regression_family_goes_through_the_same_sampler() -> None:
    sampler = mp.EpisodeSampler(mp.load_dataset("sinusoid"), ways=1, shots=10, queries=6, seed=0)
    batch = sampler.batch(0, 8)
    assert batch.classes is None
    assert batch.ways == 1
    assert batch.support_y.shape == (8, 10, 1)
    assert batch.query_x.shape == (8, 6, 1)
    assert batch.support_y.is_floating_point()
    assert same(batch.tasks(slice(5, 8)), sampler.batch(5, 3))
    assert torch.equal(sampler[6].support_x, batch.support_x[6])


def test_a_batch_moves_and_can_be_taken_apart() -> None:
    batch = make({"ways": (2, 3)}).batch(0, 6)
    assert batch.to("meta").support_mask.device.type == "meta"
    assert batch.episode(2).to("meta").query_x.device.type == "meta"
    assert len(batch.tasks(slice(4, 6))) == 2
    assert batch.ways == batch.episode(0).ways == 3


def test_purposes_have_keys_of_their_own() -> None:
    """A shift or an augmentation changes no draw, so that plain and shifted results are paired."""
    plain = make({}).batch(0, 5)
    for options in ({"shift": True}, {"augment": mp.Augment(crop=1)}):
        assert torch.equal(make(options).batch(0, 5).query_index, plain.query_index)
    assert sampler_module._PURPOSES == 7


BAD: list[tuple[dict[str, Any], str]] = [
    ({"ways": 21}, "ways=21 needs 21 classes, but data has 20 in its train split"),
    ({"ways": (2, 30)}, "ways=\\(2, 30\\) needs 30 classes"),
    ({"ways": 0}, "ways=.*: allowed is a whole number of at least 1, or a range"),
    ({"ways": (5, 2)}, "ways=.*: allowed is a whole number of at least 1, or a range"),
    ({"shots": 2.5}, "shots=2.5: allowed is a whole number of at least 1, or a range"),
    ({"queries": 20}, "shots=1 and queries=20 need 21 images a class, but class 'class 0' of data has 20"),
    ({"queries": 0}, "queries=.*: allowed is a whole number of at least 1"),
    ({"queries": True}, "queries=.*: allowed is a whole number of at least 1"),
    ({"seed": -1}, "seed=-1: allowed is a whole number from 0"),
    ({"imbalanced": True}, "imbalanced=True needs a range of shots"),
    ({"shift": "invert"}, "shift must be a callable"),
    ({"augment": 3}, "augment must be a callable"),
    ({"episodes": 0}, "episodes=0: allowed is a whole number from 1 to"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments_are_refused_in_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(options)


def test_bad_numbers_of_episodes() -> None:
    sampler = make({"episodes": 10})
    for start, count in ((-1, 2), (0, 0), (9, 2)):
        with pytest.raises(ValueError, match="a batch has at least one episode"):
            sampler.batch(start, count)
    with pytest.raises(IndexError, match=r"episode 10 is not one of 0 .. 9"):
        sampler[10]
    assert len(list(sampler)) == 10  # the sequence protocol ends
    with pytest.raises(ValueError, match=r"start=0\.5: allowed is a whole number"):
        sampler.batch(0.5, 1)  # type: ignore[arg-type]


def test_a_foreign_data_set_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(
        ValueError, match=r"dataset must be an ImageData.*list has no labels, classes, gather"
    ):
        mp.EpisodeSampler([1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 5}, "ways must be 1 for the regression tasks of sinusoid"),
        ({"ways": 1, "shots": (1, 5)}, "shots must be one number for the tasks of sinusoid"),
        ({"ways": 1, "shift": True}, "shift acts on images: it has no effect on sinusoid"),
        ({"ways": 1, "rotations": True}, "rotations acts on images"),
    ],
)
def test_image_options_are_refused_for_regression(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.EpisodeSampler(mp.load_dataset("sinusoid"), **options)

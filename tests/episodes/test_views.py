"""Our episodes in the forms of torchmeta and learn2learn: the same images and labels, in their places."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.datasets.images import ImageData


def data() -> ImageData:
    numbers = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 1, 4, 4), generator=numbers, dtype=torch.uint8)
    return ImageData(pixels, torch.arange(40) % 4, list("abcd"))


def sampler(**options: Any) -> mp.EpisodeSampler:
    return mp.EpisodeSampler(data(), **{"ways": 3, "shots": 2, "queries": 3, **options})


def test_batches_go_on_where_the_last_pass_ended() -> None:
    episodes = sampler()
    loader = mp.MetaBatches(episodes, batch_size=4, batches=2, start=8)
    assert len(loader) == 2
    for first in (8, 16):
        for k, batch in enumerate(loader):
            expected = episodes.batch(first + 4 * k, 4)
            (x, y), (query_x, query_y) = batch["train"], batch["test"]
            assert torch.equal(x, episodes.dataset.preprocess(expected.support_x))
            assert torch.equal(query_x, episodes.dataset.preprocess(expected.query_x))
            assert torch.equal(y, expected.support_y)
            assert torch.equal(query_y, expected.query_y)
    assert len(mp.MetaBatches(sampler(episodes=10), batch_size=4)) == 2  # whole batches


def test_a_stream_of_our_batches_is_our_episodes() -> None:
    episodes = sampler()
    stream = mp.EpisodeStream(mp.MetaBatches(episodes, batch_size=3, preprocess=lambda x: x))
    drawn, expected = stream.batch(0, 5), episodes.batch(0, 5)
    for name in ("support_x", "support_y", "query_x", "query_y"):
        assert torch.equal(getattr(drawn, name), getattr(expected, name)), name


@pytest.mark.parametrize("ahead", [1, 3, 64])
def test_tasks_are_class_by_class_the_support_items_first(ahead: int) -> None:
    episodes = sampler(episodes=7)
    tasks = mp.TaskPairs(episodes, preprocess=lambda x: x, ahead=ahead)
    assert len(tasks) == len(list(tasks)) == 7
    for i in (0, 5, 6, 2):
        x, y = tasks[i]
        assert y.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        rows = x.view(3, 5, 1, 4, 4)
        assert torch.equal(rows[:, :2].flatten(0, 1), episodes[i].support_x)
        assert torch.equal(rows[:, 2:].flatten(0, 1), episodes[i].query_x)
    stream = mp.EpisodeStream(mp.TaskPairs(episodes, start=3), shots=2)
    assert torch.equal(stream.batch(0, 1).query_x[0], episodes.dataset.preprocess(episodes[3].query_x))
    with pytest.raises(IndexError, match=r"task 7 is not one of 0 .. 6"):
        tasks[7]


def test_functions_and_images_without_a_preprocess() -> None:
    curves = mp.EpisodeSampler(mp.load_dataset("sinusoid"), ways=1, shots=5, queries=2)
    batch = next(iter(mp.MetaBatches(curves, batch_size=2)))
    assert torch.equal(batch["train"][0], curves.batch(0, 2).support_x)
    x, y = mp.TaskPairs(curves).sample()
    assert torch.equal(y[:5], curves[0].support_y)
    assert x.shape[0] == 7

    class Bare:
        def batch(self, start: int, count: int) -> mp.EpisodeBatch:
            return sampler().batch(start, count)

        def __len__(self) -> int:
            return 9

    (x, _) = next(iter(mp.MetaBatches(Bare(), batch_size=2)))["train"]
    assert torch.equal(x, sampler().batch(0, 2).support_x / 255)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: mp.MetaBatches(3, batch_size=1), r"sampler is of type int, without .batch"),
        (lambda: mp.MetaBatches(sampler(), batch_size=0), r"batch_size=0"),
        (lambda: mp.MetaBatches(sampler(), batch_size=1, batches=0), r"batches=0"),
        (lambda: mp.MetaBatches(sampler(), batch_size=1, start=-1), r"start=-1"),
        (lambda: mp.MetaBatches(sampler(), batch_size=1, preprocess=2), r"preprocess=2"),
        (lambda: mp.TaskPairs(sampler(), ahead=0), r"ahead=0"),
        (lambda: next(iter(mp.MetaBatches(sampler(ways=(2, 3)), 1))), r"ways or shots that vary"),
    ],
)
def test_refused(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()

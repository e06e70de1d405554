"""Tasks of other libraries as episodes: what comes out, in which order, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from tests.learner.helpers import images


def batches(count: int, tasks: int = 3, names: tuple[str, str] = ("train", "test")) -> list[dict[str, Any]]:
    """Two classes, one item each and two; every item holds the number of its task."""
    found = []
    for first in range(0, count * tasks, tasks):
        number = torch.arange(first, first + tasks).float().view(-1, 1, 1)
        pairs = (number.expand(-1, 2, 4), torch.tensor([[0, 1]] * tasks, dtype=torch.int32))
        queries = (number.expand(-1, 4, 4) + 100, torch.tensor([[0, 0, 1, 1]] * tasks))
        found.append(dict(zip(names, (pairs, queries))))
    return found


@pytest.mark.parametrize("names", [("train", "test"), ("support", "query")])
def test_batches_of_a_loader_are_regrouped_in_order(names: tuple[str, str]) -> None:
    stream = mp.EpisodeStream(batches(2, names=names))
    assert repr(stream) == "EpisodeStream(list)"
    drawn = [stream.batch(0, count).support_x[:, 0, 0].tolist() for count in (2, 2, 1, 5)]
    assert drawn == [[0, 1], [2, 3], [4], [5, 0, 1, 2, 3]]  # and begun anew where it ends
    batch = stream.batch(0, 1)
    assert batch.support_y.dtype == batch.query_y.dtype == torch.int64
    assert batch.query_x[0, 0, 0] == 104
    assert (batch.ways, batch.classes) == (2, None)


class Drawn:
    """As torchmeta's data sets: `.sample_task()` has parts, which are lists of pairs."""

    def __init__(self, last: Any = None) -> None:
        self.count, self.last = 0, last

    def sample_task(self) -> dict[str, Any]:
        self.count += 1
        item = torch.full((4,), float(self.count)) if self.last is None else self.last
        return {"train": [(item, 0), (item, 1)], "test": [(item, 1), (item, 0)]}


def test_tasks_of_a_data_set_are_drawn_one_by_one() -> None:
    stream = mp.EpisodeStream(Drawn())
    batch = stream.batch(7, 3)  # the number says nothing
    assert batch.support_x[:, 0, 0].tolist() == [1, 2, 3]
    assert batch.query_y.tolist() == [[1, 0]] * 3
    assert stream.batch(7, 1).support_x[0, 0, 0] == 4
    with pytest.raises(ValueError, match=r"cannot be stacked.*ToTensor"):
        mp.EpisodeStream(Drawn(last=object())).batch(0, 1)


class Tasks:
    """As learn2learn's `Taskset`: one pair a task, not divided."""

    def __init__(self, y: list[int], count: int = -1, x: Any = None) -> None:
        self.y, self.num_tasks, self.drawn, self.x = torch.tensor(y), count, 0, x

    def __getitem__(self, i: int) -> Any:
        return self.task(i)

    def sample(self) -> Any:
        self.drawn += 1
        return self.task(100 * self.drawn)

    def task(self, number: int) -> Any:
        return (torch.arange(len(self.y)) + number if self.x is None else self.x), self.y


def test_whole_tasks_are_divided_by_class() -> None:
    stream = mp.EpisodeStream(Tasks([1, 0, 1, 0, 1, 0]), shots=1)
    batch = stream.batch(0, 2)
    assert batch.support_x.tolist() == [[101, 100], [201, 200]]
    assert batch.query_x.tolist() == [[103, 105, 102, 104], [203, 205, 202, 204]]
    assert batch.support_y.tolist() == [[0, 1]] * 2
    assert batch.query_y.tolist() == [[0, 0, 1, 1]] * 2
    counted = mp.EpisodeStream(Tasks([0, 0, 1, 1], count=3), shots=1)
    assert counted.batch(2, 3).support_x[:, 0].tolist() == [2, 0, 1]  # task i modulo their number
    assert torch.equal(counted.batch(2, 3).query_x, counted.batch(2, 3).query_x)
    assert repr(counted) == "EpisodeStream(Tasks, shots=1)"


def test_a_learner_trains_and_is_evaluated_on_them() -> None:
    own = images(tasks=4)

    def loader() -> Iterator[Any]:
        while True:
            yield {"train": (own.support_x, own.support_y), "test": (own.query_x, own.query_y)}

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double()
    learners = [mp.methods.maml(net, steps=1, lr=0.1, norm="running") for _ in range(2)]
    trainers = [mp.BilevelTrainer(one, lr=0.01, tasks_per_step=2, progress=False) for one in learners]
    trainers[0].fit(mp.EpisodeStream(loader()), steps=2)

    class Ours:
        def batch(self, start: int, count: int) -> mp.EpisodeBatch:
            return own.tasks(slice(start % 4, start % 4 + count))

    trainers[1].fit(Ours(), steps=2)
    for name, value in learners[0].state().items():
        assert torch.equal(value, learners[1].state()[name]), name
    result = mp.evaluate(learners[0], mp.EpisodeStream(loader()), episodes=4)
    expected = mp.evaluate(learners[1], Ours(), episodes=4, tasks_per_batch=4)
    assert torch.equal(result.losses, expected.losses)
    assert torch.equal(result.values, expected.values)


def labelled(support: list[int], query: list[int]) -> dict[str, Any]:
    parts = {"train": support, "test": query}
    return {part: (torch.zeros(1, len(y), 4), torch.tensor([y])) for part, y in parts.items()}


REFUSED: list[tuple[Any, str]] = [
    (lambda: mp.EpisodeStream(3), r"source is of type int.*BatchMetaDataLoader"),
    (lambda: mp.EpisodeStream([], shots=1), r"shots=1 has no effect: list divides"),
    (lambda: mp.EpisodeStream(Tasks([0, 1])), r"shots=None: Tasks has tasks that are not divided"),
    (lambda: mp.EpisodeStream(Tasks([0, 1]), shots=0), r"shots=0"),
    (lambda: mp.EpisodeStream([]).batch(0, 1), r"of type list, has no batches"),
    (lambda: mp.EpisodeStream([]).batch(0, 0), r"count=0"),
    (lambda: mp.EpisodeStream([]).batch(-1, 1), r"start=-1"),
    (lambda: mp.EpisodeStream([{"train": 1}]).batch(0, 1), r"a batch with \['train'\].*ClassSplitter"),
    (lambda: mp.EpisodeStream([(1, 2)]).batch(0, 1), r"a batch of type tuple"),
    (lambda: mp.EpisodeStream([labelled([0, 2], [0])]).batch(0, 1), r"labels \[0, 2\].*RemapLabels"),
    (lambda: mp.EpisodeStream([labelled([0, 1], [2])]).batch(0, 1), r"each of 0 .. N - 1 is needed"),
    (lambda: mp.EpisodeStream([labelled([-1, 0], [0])]).batch(0, 1), r"labels \[-1, 0\]"),
    (lambda: mp.EpisodeStream([{"train": ([1], [2]), "test": 0}]).batch(0, 1), r"support: items are of type list"),
    (lambda: mp.EpisodeStream(Tasks([0, 1, 1]), shots=1).batch(0, 1), r"\[1, 2\] items of its classes: equally many"),
    (lambda: mp.EpisodeStream(Tasks([0, 1]), shots=1).batch(0, 1), r"more than shots=1"),
    (lambda: mp.EpisodeStream(Tasks([0, 1], x=torch.zeros(3)), shots=1).batch(0, 1), r"for items \(3,\)"),
    (lambda: mp.EpisodeStream(Tasks([5, 5, 7, 7]), shots=1).batch(0, 1), r"labels \[5, 7\]"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_refused(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


def test_a_task_that_is_no_pair_is_refused() -> None:
    class Whole:
        def sample(self) -> Tensor:
            return torch.zeros(3)

    with pytest.raises(ValueError, match=r"a task of Whole is of type Tensor.*LoadData"):
        mp.EpisodeStream(Whole(), shots=1).batch(0, 1)

"""Episodes of the same images by us, torchmeta and learn2learn: are they distributed alike, and how many a second.

    python -m benchmarks.interop [--json FILE]

Needs the packages of requirements-peers.txt and requirements-peers-nodeps.txt. Seconds are the processor's, of one
thread, user and system, so that other work on the machine counts little; repeats alternate.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import App, Parameter
from scipy import stats
from torch import Tensor

import metapeft as mp
from benchmarks.peer_imports import import_learn2learn, import_torchmeta
from metapeft.datasets.images import ImageData
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "interop.json"
WAYS, BATCH, SEED = 5, 64, 0
Draw = Callable[[int], Iterator[mp.EpisodeBatch]]
Counts = dict[str, Any]


def images(classes: int, each: int, size: int) -> ImageData:
    """Images whose first two pixels say which they are, so that it can be read off what comes out of any library."""
    number = torch.arange(classes * each)
    pixels = torch.randint(
        0, 256, (len(number), 1, size, size), generator=torch.Generator().manual_seed(SEED), dtype=torch.uint8
    )
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = number // 256, number % 256
    names = [str(name) for name in range(classes)]
    return ImageData(pixels, number // each, names, mean=[0.0], deviation=[1.0])


def places(x: Tensor) -> Tensor:
    """Which image each is, from its first two pixels."""
    return x[..., 0, 0, 0].long() * 256 + x[..., 0, 0, 1].long()


def seeded(seed: int) -> None:
    """Python's and torch's global states, from which torchmeta and learn2learn draw."""
    random.seed(seed)
    torch.manual_seed(seed)


def torchmeta_dataset(data: ImageData, shots: int, queries: int, seed: int = SEED) -> Any:
    """`CombinationMetaDataset` of these images, divided by `ClassSplitter`, as torchmeta's own data sets are made."""
    import_torchmeta()
    from torchmeta.transforms import Categorical, ClassSplitter
    from torchmeta.utils.data import ClassDataset, CombinationMetaDataset
    from torchmeta.utils.data.task import Dataset

    each = len(data) // len(data.classes)

    class OneClass(Dataset):  # type: ignore[misc]
        def __init__(self, index: int) -> None:
            super().__init__(index)

        def __len__(self) -> int:
            return each

        def __getitem__(self, i: int) -> Any:
            target = self.index if self.target_transform is None else self.target_transform(self.index)
            return data.images[self.index * each + i], target

    class Classes(ClassDataset):  # type: ignore[misc]
        num_classes = len(data.classes)

        def __init__(self) -> None:
            super().__init__(meta_train=True)

        def __getitem__(self, index: int) -> Any:
            return OneClass(index)

    splitter = ClassSplitter(shuffle=True, num_train_per_class=shots, num_test_per_class=queries)
    dataset = CombinationMetaDataset(
        Classes(), WAYS, target_transform=Categorical(num_classes=WAYS), dataset_transform=splitter
    )
    dataset.seed(seed)
    return dataset


def torchmeta_loader(data: ImageData, shots: int, queries: int, batch_size: int = BATCH) -> Any:
    """`BatchMetaDataLoader`; classes come from Python's global state, labels from torch's."""
    dataset = torchmeta_dataset(data, shots, queries)
    from torchmeta.utils.data import BatchMetaDataLoader

    return BatchMetaDataLoader(dataset, batch_size=batch_size, num_workers=0)


def learn2learn_tasks(data: ImageData, shots: int, queries: int, num_tasks: int = -1) -> Any:
    """`Taskset` with the transforms of its own benchmarks; its tasks come from Python's global state."""
    data_of = import_learn2learn().data
    dataset = data_of.MetaDataset(torch.utils.data.TensorDataset(data.images, data.labels))
    transforms = [
        data_of.transforms.FusedNWaysKShots(dataset, n=WAYS, k=shots + queries),
        data_of.transforms.LoadData(dataset),
        data_of.transforms.RemapLabels(dataset),
        data_of.transforms.ConsecutiveLabels(dataset),
    ]
    return data_of.Taskset(dataset, transforms, num_tasks=num_tasks)


def kinds(data: ImageData, shots: int, queries: int) -> dict[str, Draw]:
    """Name -> episodes of it in batches, without end."""

    def ours(_: int) -> Iterator[mp.EpisodeBatch]:
        sampler = mp.EpisodeSampler(data, WAYS, shots, queries, SEED)
        return (sampler.batch(first, BATCH) for first in itertools.count(0, BATCH))

    def torchmeta(seed: int) -> Iterator[mp.EpisodeBatch]:
        seeded(seed)
        stream = mp.EpisodeStream(torchmeta_loader(data, shots, queries))
        return (stream.batch(0, BATCH) for _ in itertools.count())

    def learn2learn(seed: int) -> Iterator[mp.EpisodeBatch]:
        seeded(seed)
        stream = mp.EpisodeStream(learn2learn_tasks(data, shots, queries), shots)
        return (stream.batch(0, BATCH) for _ in itertools.count())

    return {"metapeft": ours, "torchmeta": torchmeta, "learn2learn": learn2learn}


def cells(
    batches: Iterator[mp.EpisodeBatch], episodes: int, classes: int, each: int
) -> dict[str, np.ndarray]:
    """Statistic -> how often each of its values came; one value an episode, so that counts are multinomial."""
    found: dict[str, list[Tensor]] = {}
    for _ in range(-(-episodes // BATCH)):
        batch = next(batches)
        support, query = places(batch.support_x), places(batch.query_x)
        first = support.gather(1, (batch.support_y == 0).long().argmax(1, keepdim=True))[:, 0]
        last = support.gather(1, (batch.support_y == WAYS - 1).long().argmax(1, keepdim=True))[:, 0]
        asked = query.gather(1, (batch.query_y == 0).long().argmax(1, keepdim=True))[:, 0]
        values = {
            "class of the first label": first // each,
            "class of the last label": last // each,
            "classes of first and last label": first // each * classes + last // each,
            "support image within its class": first % each,
            "query image within its class": asked % each,
            "support and query image": first % each * each + asked % each,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.bincount(torch.cat(values)[:episodes]) for name, values in found.items()}


def agreement(counts: dict[str, dict[str, np.ndarray]]) -> Counts:
    """Chi-square probabilities: each library against uniform, and ours against each of the others."""
    found: Counts = {}
    for statistic in counts["metapeft"]:
        size = max(len(one[statistic]) for one in counts.values())
        table = {
            name: np.pad(one[statistic], (0, size - len(one[statistic]))) for name, one in counts.items()
        }
        possible = (
            np.stack(list(table.values())).sum(0) > 0
        )  # a class comes once an episode, and so does an image
        table = {name: row[possible] for name, row in table.items()}
        own = {f"{name}, uniform": float(stats.chisquare(row).pvalue) for name, row in table.items()}
        for name, row in table.items():
            if name != "metapeft":
                pair = np.stack([table["metapeft"], row])
                own[f"metapeft, {name}"] = float(stats.chi2_contingency(pair[:, pair.sum(0) > 0]).pvalue)
        found[statistic] = {"cells": int(possible.sum()), "p": own}
    return found


def distribution(episodes: int, classes: int = 20, each: int = 8) -> Counts:
    """Ours and theirs, of tiny images: 5 ways, 1 shot, 1 query."""
    data = images(classes, each, size=2)
    counts = {name: cells(draw(SEED), episodes, classes, each) for name, draw in kinds(data, 1, 1).items()}
    return {"episodes": episodes, "classes": classes, "images a class": each, "statistics": agreement(counts)}


def rates(repeats: int, seconds: float) -> Counts:
    """Episodes a processor second: Omniglot's size, 5 ways, 1 shot, 15 queries, every library by its own means."""
    data = images(classes=64, each=20, size=28)
    sampler, tasks = mp.EpisodeSampler(data, WAYS, 1, 15, SEED), learn2learn_tasks(data, 1, 15)
    loader = iter(torchmeta_loader(data, 1, 15))
    numbers = itertools.count(0, BATCH)
    draws: dict[str, tuple[Callable[[], Any], int]] = {
        "metapeft": (lambda: sampler.batch(next(numbers), BATCH), BATCH),
        "torchmeta": (lambda: next(loader), BATCH),
        "learn2learn": (lambda: tasks.sample(), 1),
    }
    seeded(SEED)
    found: dict[str, list[float]] = {name: [] for name in draws}
    for repeat in range(repeats + 1):
        for name, (draw, count) in draws.items():
            drawn, begun = 0, time.process_time()
            while (spent := time.process_time() - begun) < seconds:
                draw()
                drawn += count
            if repeat:  # the first is not counted
                found[name].append(drawn / spent)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "ways": WAYS,
        "shots": 1,
        "queries": 15,
        "size": 28,
        "repeats": found,
        "median": medians,
        "ratio": {name: medians["metapeft"] / value for name, value in medians.items() if name != "metapeft"},
    }


@app.default
def main(
    *,
    json_file: Annotated[Path, Parameter(name="--json")] = RESULTS,
    episodes: int = 100_000,
    repeats: int = 7,
    seconds: float = 1.0,
) -> None:
    """Draw, compare, and write what came out.

    Args:
        json_file: where it goes. episodes: of each library, for the comparison. repeats, seconds: of the timing.
    """
    torch.set_num_threads(1)
    content: Counts = {"environment": environment(), "rates": rates(repeats, seconds)}
    for name, ratio in content["rates"]["ratio"].items():
        print(f"{ratio:.0f} times as many episodes a second as {name}", flush=True)
    content["distribution"] = distribution(episodes)
    for name, one in content["distribution"]["statistics"].items():
        print(name, {pair: round(p, 3) for pair, p in one["p"].items()}, flush=True)
    json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()

"""MetaLoRA's own evaluation: nearest neighbours on adapted features, with a seed for each input.

    python -m benchmarks.knn pretrain            (the mixer, on miniImageNet's training classes)
    python -m benchmarks.knn choose              (Adam's rate of each row, on validation classes)
    python -m benchmarks.knn all resnet20        (every row, data set and seed that is not there yet)
    python -m benchmarks.knn run resnet20 miniimagenet cp --seed 0

A backbone is pretrained and frozen; updates on its last stage, and what generates their seeds, are trained on episodes
of training classes; classes never seen are told apart by votes of the 5 or 10 nearest neighbours. One file a row and
seed in benchmarks/results/knn, with the value of every test episode. Data: $METAPEFT_DATA (see the README), beside it
weights/ with resnet20-12fca82f.th and resnet56-4bfd9763.th of github.com/akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from torch import Tensor

import metapeft as mp
from benchmarks.knn_backbones import KEPT, MIXER, Cut, Maps, cifar, images, maps_of, mixer
from benchmarks.knn_rows import ROWS, fitted
from benchmarks.starts import accuracies
from metapeft.generators.support import Support
from metapeft.learner.learner import Learner
from metapeft.training.runs.checkpoint import save
from metapeft.training.runs.environment import environment
from metapeft.updates.formats.format import Geometry

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "knn"
RUNS = Path("runs") / "knn"
BACKBONES, DATA, SEEDS = ("resnet20", "resnet56", "mixer"), ("miniimagenet", "omniglot"), (0, 1, 2, 3, 4)
NEIGHBOURS = (5, 10)
RATES = (3e-3, 1e-2)
STEPS, TRAIN = 100, (16, 3, 3)  # outer steps of one episode: ways, shots, queries
TEST, EPISODES = (20, 10, 10), 600  # the fewest drawings of a class are 20
VALIDATION = (16, 10, 10)
PRETRAINING: dict[str, Any] = {"steps": 800, "group": 128, "lr": 1e-3}


@functools.lru_cache(maxsize=1)
def backbone_of(name: str, runs: Path) -> Cut:
    """A pretrained backbone in two parts."""
    if name not in BACKBONES:
        raise SystemExit(f"unknown backbone {name!r}: known are {', '.join(BACKBONES)}")
    return mixer(runs / "mixer.safetensors") if name == "mixer" else cifar(int(name.removeprefix("resnet")))


def make(cut: Cut, row: str, seed: int) -> Learner:
    """The learner of a row, at the budget of all rows."""
    layers = {name: Geometry(tuple(p.shape)) for name, p in cut.after.named_parameters() if p.dim() > 1}
    layers.pop("classifier.weight")
    line = ROWS[row]
    formats: Any = fitted(line, layers, cut.after.get_submodule("classifier").in_features)  # type: ignore[arg-type]
    model = mp.attach(cut.after, formats, seed=seed)
    generator = line.generator()
    groups = ["factors", "head"] + ["generator"] * (generator is not None)
    head = mp.heads.Prototypes(scale=10.0, normalize="l2")
    return mp.Learner(model, outer=groups if formats else ["head"], head=head, generator=generator, seed=seed)


def train(learner: Learner, maps: Maps, lr: float, seed: int) -> None:
    """The outer steps of one row."""
    sampler = mp.EpisodeSampler(maps, *TRAIN, seed=seed)
    trainer = mp.BilevelTrainer(
        learner, lr=lr, tasks_per_step=1, clip=10.0, schedule="cosine", progress=False
    )
    trainer.fit(sampler, STEPS)


@torch.no_grad()
def adapted_features(learner: Learner, maps: Tensor, shuffled: bool = False) -> Tensor:
    """Features `(images, F)`, each image under the update that its own seed makes.

    Args:
        maps: inputs `(images, ...)`. shuffled: each image gets the seed of another one, the same for all rows.
    """
    factors = {name: learner.variables[f"factors.{name}"] for name in learner.model.factors()}
    generator, seeds, parts = learner.generator, {}, torch.split(maps, 256)
    if generator is not None:
        own = torch.cat(
            [learner.model.features(part.unsqueeze(0), factors_off(factors)) for part in parts], 1
        )
        prefix = "generator."
        parameters = {
            name.removeprefix(prefix): value
            for name, value in learner.variables.items()
            if name.startswith(prefix)
        }
        seeds = dict(generator(parameters, learner.seeds, Support(own)))
        order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(0))
        seeds = {
            name: factors[name].unsqueeze(1) + (value[:, order] if shuffled else value)
            for name, value in seeds.items()
        }
    found, begin = [], 0
    for part in parts:
        mine = {name: value[:, begin : begin + len(part)] for name, value in seeds.items()}
        found.append(learner.model.features(part.unsqueeze(0), {**factors, **mine})[0])
        begin += len(part)
    return torch.cat(found)


def factors_off(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Factors whose update is 0: the features that a generator reads are those of the network as it was."""
    return {name: value * 0.0 if name.endswith(".B") else value for name, value in factors.items()}


def evaluated(learner: Learner, maps: Maps, sizes: tuple[int, int, int], episodes: int) -> dict[str, Tensor]:
    """What is measured -> accuracy of each episode."""
    sampler, found = mp.EpisodeSampler(maps, *sizes, seed=1000), {}
    shown = {"": False, " shuffled": True} if learner.generator is not None else {"": False}
    for what, shuffled in shown.items():
        features = adapted_features(learner, maps.maps, shuffled)
        for k in NEIGHBOURS:
            head: Any = mp.heads.KNN(k=k, normalize="l2")
            found[f"{k}{what}"] = accuracies(features, sampler, head, None, episodes)
    return found


@app.command
def pretrain(runs: Path = RUNS, threads: int = 1) -> None:
    """Train the mixer with one softmax over miniImageNet's 64 training classes.

    Args:
        runs: where it is kept. threads: of torch.
    """
    torch.set_num_threads(threads)
    x, labels, classes = images("miniimagenet", "train")
    found, log = mp.pretrain(
        mp.backbones.mixer(**MIXER), Maps("miniimagenet", "train", x, labels, classes), PRETRAINING["steps"],
        group=PRETRAINING["group"], groups=1, lr=PRETRAINING["lr"], preprocess=torch.nn.Identity(),
        augment=None, progress=False,
    )  # fmt: skip
    runs.mkdir(parents=True, exist_ok=True)
    save(runs / "mixer.safetensors", dict(found.state_dict()), {"pretraining": PRETRAINING})
    print(log[-1])


def rates() -> dict[str, Any]:
    """Row -> what `choose` found."""
    path = RESULTS / "chosen.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


@app.command
def choose(runs: Path = RUNS, threads: int = 1) -> None:
    """Adam's rate of each row: the same trials for each, with ResNet-20 on miniImageNet's validation classes.

    Args:
        runs: where pretrained backbones are. threads: of torch.
    """
    torch.set_num_threads(threads)
    mp.use_compiled()
    cut, found = backbone_of("resnet20", runs), rates()
    for name, row in ROWS.items():
        if name in found or row.rung is None:
            continue
        trials = {}
        for rate in RATES:
            learner = make(cut, name, 0)
            train(learner, maps_of(cut.before, "miniimagenet", "train"), rate, 0)
            values = evaluated(learner, maps_of(cut.before, "miniimagenet", "val"), VALIDATION, 200)
            trials[rate] = sum(float(values[str(k)].mean()) for k in NEIGHBOURS) / len(NEIGHBOURS)
        found[name] = {"rate": max(trials, key=lambda rate: trials[rate]), "trials": trials}
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "chosen.json").write_text(json.dumps(found, indent=1) + "\n")
        print(name, trials, flush=True)


def place_of(backbone: str, data: str, row: str, seed: int) -> Path:
    """Where a result is kept."""
    return RESULTS / f"{backbone}-{data}-{row}-{seed}.json"


@app.command
def run(backbone: str, data: str, row: str, seed: int = 0, runs: Path = RUNS, threads: int = 1) -> None:
    """Train one row on training classes and keep what it is worth on test classes.

    Args:
        backbone, data, row: see `list`. seed: of starts and episodes. runs: where pretrained backbones are.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    mp.use_compiled()
    begun, cut = time.monotonic(), backbone_of(backbone, runs)
    learner, rate = make(cut, row, seed), None
    if ROWS[row].rung is not None:
        if row not in rates():
            raise SystemExit("no rate was chosen yet: python -m benchmarks.knn choose")
        rate = rates()[row]["rate"]
        train(learner, maps_of(cut.before, data, "train"), rate, seed)
    test = maps_of(cut.before, data, "test")
    values = evaluated(learner, test, TEST, EPISODES)
    protocol = mp.Protocol.of(
        mp.EpisodeSampler(test, *TEST, seed=1000), EPISODES, norm="running", head="knn l2"
    )
    kept = {
        "backbone": backbone, "data": data, "row": row, "seed": seed, "about": ROWS[row].about, "rate": rate,
        "steps": STEPS, "train": TRAIN, "test": TEST, "blocks": KEPT, "pretraining": PRETRAINING,
        "parameters": sum(v.numel() for v in learner.trained.values()) if rate else 0,
        "protocol": protocol.as_dict(), "environment": environment(),
        "seconds": round(time.monotonic() - begun, 1),
        "values": {name: [round(v, 4) for v in found.tolist()] for name, found in values.items()},
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    place_of(backbone, data, row, seed).write_text(json.dumps(kept) + "\n")
    means = {name: round(100 * float(found.mean()), 2) for name, found in values.items()}
    print(f"{backbone}, {data}, {row}, seed {seed}, {kept['seconds']} s: {means}", flush=True)


@app.command(name="all")
def every(
    backbone: str,
    data: tuple[str, ...] = DATA,
    seeds: tuple[int, ...] = SEEDS,
    runs: Path = RUNS,
    threads: int = 1,
) -> None:
    """Every row that is not there yet, seed by seed.

    Args:
        backbone, data: which. seeds: of them. runs: where pretrained backbones are. threads: of torch.
    """
    for name in data:
        for seed in seeds:
            for row, line in ROWS.items():
                wanted = line.rung is not None or seed == 0
                if wanted and not place_of(backbone, name, row, seed).exists():
                    run(backbone, name, row, seed, runs, threads)


@app.command(name="list")
def names() -> None:
    """The rows, backbones and data sets."""
    print(f"backbones: {', '.join(BACKBONES)}; data: {', '.join(DATA)}")
    for name, row in ROWS.items():
        print(f"{name:14}{row.about}")


if __name__ == "__main__":
    app()

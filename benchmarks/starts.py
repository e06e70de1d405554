"""Long standard retrainings: the starts of the few-shot rows, trained over as many hours as it takes.

    python -m benchmarks.starts train mini-sr             (goes on where it stopped, here or in another checkout)
    python -m benchmarks.starts keep mini-sr              (its state and curve into benchmarks/results, to be committed)
    python -m benchmarks.starts evaluate mini-sr          (nearest centroids on its features, normalised three ways)
    python -m benchmarks.starts list

Data: $METAPEFT_DATA (see the README). With a C++ compiler, training runs through compiled kernels.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts import App
from torch import Tensor

import metapeft as mp
from metapeft.base.intervals import mean_interval
from metapeft.training.runs.checkpoint import load, save
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "starts"
BATCH = 128
NORMALIZE: tuple[Literal["l2", "center+l2"] | None, ...] = (None, "l2", "center+l2")


@dataclass(frozen=True)
class Start:
    """One retraining: SGD with momentum on batches of 128 images, the rate falling to 0 as a cosine.

    Args:
        about: one line for tables. data: which. width: of Conv-4. size, channels: of its images.
        epochs: passes over the training images. lr, decay: of SGD. ema: of the moving average.
        augment: arguments of `mp.Augment`. source: of the settings.
    """

    about: str
    data: str
    epochs: int
    augment: dict[str, Any]
    source: str
    width: int = 64
    size: int = 84
    channels: int = 3
    lr: float = 0.02
    decay: float = 5e-4
    ema: float = 0.999

    def backbone(self, seed: int) -> torch.nn.Module:
        """Conv-4 with random weights."""
        module: torch.nn.Module = mp.backbones.conv4(
            ways=5, channels=self.channels, width=self.width, size=self.size, seed=seed
        )
        return module


COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
STARTS = {
    "mini-sr": Start(
        about="100 epochs of SGD, crop, flip and colours, moving average",
        data="miniimagenet",
        epochs=100,
        augment={"crop": 8, "flip": True, **COLOURS},
        source="RFS-simple (Tian et al. 2020): epochs, batch, decay; its rate of 0.05 and 0.1 learn more slowly here",
    ),
    "omniglot-sr": Start(
        about="10 epochs of SGD on all quarter turns, moving average",
        data="omniglot",
        epochs=10,
        augment={"crop": 2, "flip": False},
        source="as mini-sr; epochs by hours",
        size=28,
        channels=1,
    ),
    "mini-sr-20": Start(
        about="20 epochs of SGD, crop, flip and colours, moving average",
        data="miniimagenet",
        epochs=20,
        augment={"crop": 8, "flip": True, **COLOURS},
        source="RFS-simple (Tian et al. 2020), a fifth of its epochs",
    ),
}


@app.command(name="list")
def names() -> None:
    """The starts that can be trained."""
    for name, start in STARTS.items():
        print(f"{name:14}{start.data}: {start.about}")


@app.command
def train(
    name: str, runs: Path = Path("runs"), seed: int = 0, threads: int = 2, compiled: bool = True
) -> None:
    """Train a start, or go on with it; a run that was kept in benchmarks/results goes on from there.

    Args:
        name: see `list`. runs: where its run folder goes. seed: of weights, order and augmentation.
        threads: of torch. compiled: through compiled kernels, with bfloat16 forwards.
    """
    start = chosen(name)
    torch.set_num_threads(threads)
    folder, kept = runs / f"{name}-{seed}", RESULTS / "running" / f"{name}-{seed}"
    if not folder.exists() and kept.exists():
        shutil.copytree(kept, folder)
    if compiled:
        mp.use_compiled()
    images, validation = (mp.load_dataset(start.data, split=split) for split in ("train", "val"))
    steps = start.epochs * len(images) // BATCH
    begun = time.monotonic()
    body, log = mp.pretrain(
        start.backbone(seed), images, steps, group=BATCH, groups=1, optimizer=torch.optim.SGD, lr=start.lr,
        options={"momentum": 0.9, "nesterov": True, "weight_decay": start.decay}, ema=start.ema, seed=seed,
        augment=mp.Augment(**start.augment), validation=mp.EpisodeSampler(validation, 5, 1, 15, seed=seed + 1),
        validate_every=2 * len(images) // BATCH, run_dir=folder, resume=True,
        autocast=torch.bfloat16 if compiled else None,
    )  # fmt: skip
    save(RESULTS / f"{name}-{seed}.safetensors", dict(body.state_dict()), {"steps": steps})
    print(f"{name}: {log[-1]}, {time.monotonic() - begun:.0f} s in this process")


@app.command
def keep(name: str, runs: Path = Path("runs"), seed: int = 0) -> None:
    """Copy a run folder into benchmarks/results, whole, so that it goes on in another checkout."""
    chosen(name)
    folder, kept = runs / f"{name}-{seed}", RESULTS / "running" / f"{name}-{seed}"
    shutil.copytree(folder, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "*.partial"))
    rows = [json.loads(line) for line in (kept / "metrics.jsonl").read_text("utf-8").splitlines()]
    print(f"{name}: kept at step {rows[-1]['step']}")


@app.command
def evaluate(
    name: str,
    runs: Path = Path("runs"),
    seed: int = 0,
    episodes: int = 2000,
    threads: int = 2,
    split: str = "test",
) -> None:
    """Nearest centroids on a start's features, as they are, of length one, and centred before, at 1 and 5 shots.

    Args:
        name: see `list`; of a run that is not at its end, the moving average as it stands. split: of the episodes.
    """
    start = chosen(name)
    torch.set_num_threads(threads)
    ended, running = RESULTS / f"{name}-{seed}.safetensors", runs / f"{name}-{seed}"
    body = start.backbone(seed)
    if ended.exists():
        state, step = load(ended)[0], None
    else:
        tree, about = load(running / "checkpoints" / "latest.safetensors")
        state = {n.partition(".")[2]: v for n, v in tree["moving"].items() if not n.startswith("softmax.")}
        step = about["step"]
    body.load_state_dict(state, strict=False)
    images, asked = mp.load_dataset(start.data, split="train"), mp.load_dataset(start.data, split=split)
    features = features_of(mp.attach(body, {}, preprocess=images.preprocess), asked)
    centred = mp.methods.centroids(
        body, head=mp.heads.Prototypes(normalize="center+l2"), preprocess=images.preprocess
    )
    center = mp.fit_center(centred, images).center
    rows: list[dict[str, Any]] = []
    for shots in (1, 5):
        sampler = mp.EpisodeSampler(asked, 5, shots, 15, seed=seed + 2)
        for normalize in NORMALIZE:
            head = mp.heads.Prototypes(normalize=normalize)
            values = accuracies(features, sampler, head, center, episodes)
            mean, half = mean_interval(values)
            said = "prototypes" if normalize is None else f"prototypes {normalize}"
            protocol = mp.Protocol.of(sampler, episodes, norm="running", head=said)
            print(f"{100 * mean:.2f} +- {100 * half:.2f} % ({protocol})")
            rows.append({
                "shots": shots, "normalize": normalize, "accuracy": mean, "ci95": half,
                "protocol": protocol.as_dict(), "values": [round(value, 4) for value in values.tolist()],
            })  # fmt: skip
    out = RESULTS / f"{name}-{seed}{'' if split == 'test' else f'-{split}'}.json"
    about = {
        "start": name,
        "seed": seed,
        "step": step,
        "images": BATCH * (start.epochs * len(images) // BATCH if step is None else step),
        "setting": asdict(start),
        "environment": environment(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


@torch.no_grad()
def features_of(model: Any, data: Any, at_once: int = 64) -> Tensor:
    """Features `(images, F)` of all images of a data set, with the statistics of the buffers; `model` is attached."""
    parts = [
        model.features(data.gather(torch.arange(i, min(i + at_once, len(data)))).unsqueeze(0), {})[0]
        for i in range(0, len(data), at_once)
    ]
    return torch.cat(parts)


def accuracies(
    features: Tensor,
    sampler: mp.EpisodeSampler,
    head: Any,
    center: Tensor | None,
    episodes: int,
    learned: dict[str, Tensor] | None = None,
) -> Tensor:
    """What `mp.evaluate` gives for a head on these features, an episode each: every image is looked up, not run."""
    found, own = [], {**(learned or {}), **({} if center is None else {"center": center})}
    for start in range(0, episodes, 100):
        batch = sampler.batch(start, min(100, episodes - start))
        tensors = head.start(features[batch.support_index], batch.support_y, batch.ways, None, own)
        guessed = head.logits(features[batch.query_index], tensors).argmax(-1)
        found.append((guessed == batch.query_y).double().mean(1))
    return torch.cat(found)


def chosen(name: str) -> Start:
    """The start of a name."""
    if name not in STARTS:
        raise SystemExit(f"unknown start {name!r}: known are {', '.join(STARTS)}")
    return STARTS[name]


if __name__ == "__main__":
    app()

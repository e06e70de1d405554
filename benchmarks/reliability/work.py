"""The kinds of work that are killed: each starts in a folder, or goes on with what it finds there."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import metapeft as mp
from metapeft.base.files import is_partial
from metapeft.base.state import sha256
from metapeft.datasets.images import SPLITS, ImageData
from metapeft.datasets.miniimagenet import class_names
from metapeft.training.runs.run import Run
from theory.figures import rows
from theory.figures.command import draw

STEPS, EXPORTS, PICTURES = 24, 24, 2


def images(split: str = "train") -> ImageData:
    """Noise in six classes."""
    random = torch.Generator().manual_seed(len(split))
    pixels = torch.randint(0, 256, (48, 1, 16, 16), dtype=torch.uint8, generator=random)
    return ImageData(pixels, torch.arange(48) % 6, [f"{split}{n}" for n in range(6)], split)


def body() -> nn.Module:
    """A network of two small layers, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 2, 3, stride=4), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
        return nn.Sequential(*layers)


def train(folder: Path) -> None:
    """The whole method, with all that a checkpoint must hold."""
    inner = mp.inner.SGD(2, 0.05, rates="step")
    learner = mp.methods.metapeft(body(), format=mp.CP(2), inner=inner, hidden=4, norm="support", shots=1)
    trainer = mp.BilevelTrainer(
        learner, lr=3e-3, tasks_per_step=2, chunk=1, schedule="cosine", progress=False
    )
    episodes, judged = (mp.EpisodeSampler(images(split), 3, 1, 2) for split in ("train", "val"))
    if trainer.has_run(folder):
        trainer.resume(folder, episodes, judged)
        return
    every = {"validate_every": 10, "validation_episodes": 2, "checkpoint_every": 1, "log_every": 1}
    trainer.fit(episodes, STEPS, judged, folder, **every)  # type: ignore[arg-type]


def pretrain(folder: Path) -> None:
    """Standard retraining."""
    resume = (folder / "config.json").exists()
    mp.pretrain(body(), images(), 30, group=8, run_dir=folder, resume=resume, progress=False)


def rows_of_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation rows of an update of rank 1."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :1] @ torch.ones(1, 6) + 0.1 * x.flip(0, 1)
    return (x[:48], y[:48]), (x[48:], y[48:])


def search(folder: Path) -> None:
    """Ranks by pruning, a training a stage."""
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(torch.eye(6))  # type: ignore[operator]
    pruning = mp.PruneRanks(keep=0.6, refit=20)
    mp.search_ranks(
        net, *rows_of_data(), format=mp.LoRA(3), method=pruning, total=2, steps=40, lr=0.05, loss=F.mse_loss,
        run_dir=folder,
    )  # fmt: skip


def export(folder: Path) -> None:
    """Adapters of one network, one after the other."""
    net = body()
    for number in range(EXPORTS):
        target = folder / f"{number:02}"
        if target.exists():
            continue
        model = mp.attach(net, mp.LoRA(2), seed=number)
        mp.export_peft(model, {name: value[0] for name, value in model.factors().items()}, target)


def raw_pictures(folder: Path) -> None:
    """Class folders for `importing`, made before anything is killed."""
    random = np.random.default_rng(0)
    for split in SPLITS:
        for name in class_names(split):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(PICTURES):
                pixels = random.integers(0, 256, (90, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


def importing(folder: Path) -> None:
    """A data set from class folders into a store."""
    if not (folder / "store").exists():
        mp.import_dataset("miniimagenet", folder.parent / "raw", folder, complete=False)


def figures(folder: Path) -> None:
    """A figure of the linear theory: its points, two pictures and the page."""
    with contextlib.redirect_stdout(io.StringIO()):
        draw(folder, "paper", "n", resume=True)


def check_runs(folder: Path) -> int:
    """Read every run below a folder; the largest number of logged steps that no checkpoint has."""
    lost = 0
    for config in folder.rglob("config.json"):
        with Run.open(config.parent, writable=False) as run:
            logged, kept = max([0, *(int(row["step"]) for row in run.metrics())]), 0
            for checkpoint in config.parent.glob("checkpoints/[!.]*.safetensors"):
                _, said = run.load(checkpoint.stem)
                if checkpoint.stem == "latest":
                    kept = int(said.get("step", 0))
        lost = max(lost, logged - kept)
    return lost


def check_adapters(folder: Path) -> int:
    """Read every adapter; returns 0, for there are no steps to lose."""
    for target in sorted(folder.glob("[!.]*")):
        mp.from_peft(body(), target)
    return 0


def check_store(folder: Path) -> int:
    """Read the store where there is one; returns 0."""
    if (folder / "store").exists():
        assert len(mp.load_dataset("miniimagenet", folder, split="test", per_class=None)) == 20 * PICTURES
    return 0


def check_figures(folder: Path) -> int:
    """Read every table of points; returns 0."""
    for path in folder.glob("[!.]*.csv"):
        assert rows.read(path)
    return 0


def content(folder: Path) -> dict[str, str]:
    """The digest of every file that depends on the work alone, not on the time or the process.

    The header of safetensors has its entries in any order, so tensors and entries are taken out.
    """
    own = (
        "metrics.jsonl",
        ".safetensors",
        ".npy",
        ".csv",
        "adapter_config.json",
        "metapeft.json",
        "README.md",
    )
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name.endswith(own):
            name = path.relative_to(folder).as_posix()
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    said = sorted((file.metadata() or {}).items())
                found[name] = sha256(load_file(path), repr(said))
            else:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(folder: Path) -> list[str]:
    """Files and folders in the making that a finished work left behind."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob(".*")
        if is_partial(path.name) or path.name.endswith(".part")
    )


@dataclass(frozen=True)
class Work:
    """A kind of work.

    Args:
        run: starts it in a folder, or goes on. check: reads all that it left; the steps that were lost.
        kills: how many of the hundred. late: the share of its time alone after which it is killed at the latest.
    """

    run: Callable[[Path], None]
    check: Callable[[Path], int]
    kills: int
    late: float = 0.4


WORKS = {
    "train": Work(train, check_runs, 33),
    "pretrain": Work(pretrain, check_runs, 14),
    "search": Work(search, check_runs, 14),
    "import": Work(importing, check_store, 14, 1.0),
    "figures": Work(figures, check_figures, 10),
    "export": Work(export, check_adapters, 15),
}

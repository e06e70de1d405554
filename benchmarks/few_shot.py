"""Few-shot accuracy on real data: one command a row, resumable, its result kept as a JSON file.

    python -m benchmarks.few_shot sr --data omniglot                 (the start that most rows share)
    python -m benchmarks.few_shot sr --data omniglot --continued     (on as many images as the other rows see after it)
    python -m benchmarks.few_shot lora-ml --data omniglot
    python -m benchmarks.few_shot list

Killed at any moment, the same command goes on. Starts that were trained before are kept in
benchmarks/results/few_shot/starts. Data: $METAPEFT_DATA (see the README).
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from cyclopts import App

import metapeft as mp
from benchmarks.rows import OUTER_STEPS, ROWS, SHARE, TASKS, Setting, budget, build, controlled
from metapeft.episodes.shift import training_styles
from metapeft.training.pretraining import softmax_of
from metapeft.training.runs.checkpoint import load, save
from metapeft.training.runs.environment import environment
from metapeft.training.trainer import BilevelTrainer

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "few_shot"
Data = Literal["omniglot", "miniimagenet", "glyph-pairs"]
Kind = Literal["plain", "shifted"]


class Retraining(TypedDict):
    """Size of a standard retraining: outer steps of `groups` groups of `group` images each, and its rate."""

    steps: int
    group: int
    groups: int
    lr: float


SR: dict[str, Retraining] = {
    "omniglot": {"steps": 3000, "group": 64, "groups": 2, "lr": 2e-3},
    "miniimagenet": {"steps": 2500, "group": 64, "groups": 1, "lr": 1e-3},
    "glyph-pairs": {"steps": 1000, "group": 64, "groups": 2, "lr": 2e-3},
}
SHOTS = {"omniglot": 1, "miniimagenet": 1, "glyph-pairs": 5}
SWAPPED = mp.Shift(["plain", "swap"])


def splits(data: str, kind: Kind, seed: int) -> dict[str, Any]:
    """Samplers of 5-way episodes with 15 queries, on training, validation and test classes.

    1-shot ones; 5-shot ones of glyph pairs, each of which decides the half of the images that counts.
    """
    pairs = data == "glyph-pairs"
    if pairs and kind != "plain":
        raise ValueError("glyph pairs swap their halves, and have no shifted episodes beside")
    shift = SWAPPED if pairs else kind == "shifted"
    return {
        split: mp.EpisodeSampler(
            mp.load_dataset(data, split=split), 5, SHOTS[data], 15, seed=seed + offset, shift=shift
        )
        for offset, split in enumerate(("train", "val", "test"))
    }


def backbone(data: str, seed: int) -> torch.nn.Module:
    """Conv-4-64 for 28x28 grey or 84x84 colour images."""
    channels, size = (3, 84) if data == "miniimagenet" else (1, 28)
    module: torch.nn.Module = mp.backbones.conv4(ways=5, channels=channels, width=64, size=size, seed=seed)
    return module


def sr_folder(data: str, kind: str, runs: Path, seed: int, continued: bool = False) -> Path:
    """Where a retraining lies; plain and shifted ones are different."""
    shifted = "" if kind == "plain" else f"-{kind}"
    return runs / f"{data}{shifted}-sr{'-continued' if continued else ''}-{seed}"


def sr_start(data: str, folder: Path, seed: int) -> torch.nn.Module:
    """The backbone after standard retraining: the one in `folder`, or the kept one of the same name.

    Raises ValueError where neither is there.
    """
    own, kept = folder / "start.safetensors", RESULTS / "starts" / f"{folder.name}.safetensors"
    if not own.exists() and not kept.exists():
        raise ValueError(f"{own} is missing: run `python -m benchmarks.few_shot sr --data {data} ...` first")
    module = backbone(data, seed)
    module.load_state_dict(load(own if own.exists() else kept)[0])
    return module


@app.command
def sr(
    data: Data = "omniglot",
    kind: Kind = "plain",
    continued: bool = False,
    runs: Path = Path("runs"),
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Standard retraining: one softmax over all training classes; the start of the other rows.

    Args:
        data: which data. kind: shifted: images in the styles that shifted rows train with.
        continued: go on from the retraining that is there, on as many images as the meta-trained rows see; with its
            softmax where its run folder is there, with a new one where only the kept start is. runs, seed, threads: as
            for the rows.
    """
    torch.set_num_threads(threads)
    train = mp.load_dataset(data, split="train")
    folder, first = sr_folder(data, kind, runs, seed, continued), sr_folder(data, kind, runs, seed)
    begun = time.monotonic()
    items = 5 * (SHOTS[data] + 15)
    more: Retraining = {
        "steps": round(SHARE[data] * OUTER_STEPS), "group": items, "groups": TASKS, "lr": 1e-3,
    }  # fmt: skip
    shift = SWAPPED if data == "glyph-pairs" else training_styles() if kind == "shifted" else None
    softmax = softmax_of(first) if continued and (first / "run").exists() else None
    body, log = mp.pretrain(
        sr_start(data, first, seed) if continued else backbone(data, seed), train,
        run_dir=folder / "run", resume=True, seed=seed + continued, softmax=softmax,
        shift=shift, **(more if continued else SR[data]),
    )  # fmt: skip
    save(folder / "start.safetensors", dict(body.state_dict()), {})
    print(f"sr on {data}: {log[-1]}, {time.monotonic() - begun:.0f} s")


@app.command(name="list")
def names() -> None:
    """The rows that can be run."""
    for name, setting in ROWS.items():
        print(f"{name:28}{setting.about}")


@app.default
def run(
    row: str,
    data: Data = "omniglot",
    kind: Kind = "plain",
    runs: Path = Path("runs"),
    seed: int = 0,
    episodes: int = 600,
    threads: int = 2,
    steps: int | None = None,
) -> None:
    """Train one row, evaluate it on test classes and write its result.

    Args:
        row: see `list`. data: which data. kind: plain or shifted episodes. runs: where run folders go.
        seed: of everything. episodes: test episodes. threads: of torch. steps: outer steps in place of the row's.
    """
    torch.set_num_threads(threads)
    if row not in ROWS:
        raise SystemExit(f"unknown row {row!r}: known are {', '.join(ROWS)}")
    setting = budget(ROWS[row], data)
    samplers = splits(data, kind, seed)
    preprocess = samplers["train"].dataset.preprocess
    start = (
        backbone(data, seed)
        if setting.start == "scratch"
        else sr_start(data, sr_folder(data, kind, runs, seed, setting.start == "sr-continued"), seed)
    )
    begun = time.monotonic()
    learner, chosen = build(setting, start, preprocess, samplers["val"])
    folder = runs / f"{data}-{kind}-{row}-{seed}"
    log: list[dict[str, Any]] = []
    if setting.steps:
        trainer = BilevelTrainer(
            learner,
            lr=setting.lr,
            tasks_per_step=setting.tasks,
            chunk=setting.chunk,
            clip=10.0,
            schedule="cosine",
        )
        train = training_sampler(setting, samplers["train"])
        if trainer.has_run(folder):
            log = trainer.resume(folder, train, samplers["val"])
        else:
            log = trainer.fit(
                train,
                steps or setting.steps,
                samplers["val"],
                folder,
                validate_every=setting.validate_every,
                validate_start=setting.start != "scratch",
            )
    seconds = time.monotonic() - begun
    result = mp.evaluate(learner, samplers["test"], episodes)
    write(row, data, kind, seed, result, setting, chosen, seconds, log)
    if setting.control is not None:
        control = controlled(setting, learner, start, preprocess)
        result = mp.evaluate(control, samplers["test"], episodes)
        about = f"{row}, its generator fed another task's support set at test"
        write(setting.control, data, kind, seed, result, replace(setting, about=about), chosen, seconds, [])


def training_sampler(setting: Setting, sampler: Any) -> Any:
    """The training episodes of a row: those of the test, or of more ways."""
    if setting.ways is None:
        return sampler
    return mp.EpisodeSampler(
        sampler.dataset, setting.ways, sampler.shots, setting.queries, seed=sampler.seed, shift=sampler.shift
    )


def best_step(log: list[dict[str, Any]]) -> int | None:
    """The outer step whose state validation chose; None where nothing was validated.

    Example:
        >>> best_step([{"step": 0, "validation_accuracy": 0.9}, {"step": 5}, {"step": 9, "validation_accuracy": 0.8}])
        0
    """
    validated = [line for line in log if "validation_accuracy" in line]
    return max(validated, key=lambda line: line["validation_accuracy"])["step"] if validated else None


def write(
    row: str,
    data: str,
    kind: str,
    seed: int,
    result: Any,
    setting: Setting,
    chosen: dict[str, Any],
    seconds: float,
    log: list[dict[str, Any]],
) -> None:
    """Keep a row as benchmarks/results/few_shot/<data>-<kind>-<row>-<seed>.json, and print it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = {
        "row": row, "about": setting.about, "data": data, "kind": kind, "seed": seed,
        "accuracy": result.accuracy, "ci95": result.ci95, "protocol": result.protocol.as_dict(),
        "setting": setting.as_dict(), "chosen": chosen, "seconds_of_last_process": round(seconds, 1),
        "best_step": best_step(log), "environment": environment(),
        "log": log[-20:], "values": [round(v, 4) for v in result.values.tolist()],
    }  # fmt: skip
    (RESULTS / f"{data}-{kind}-{row}-{seed}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{row} on {data}, {kind}: {result}")


if __name__ == "__main__":
    app()

"""Runs for tests/fixtures/runs, made by the version whose runs shall stay loadable, with what it computes from them.

They come from a checkout of that version, its number being in their `environment.json`; commit fb410d4 made those that
are there:

    PYTHONPATH=<checkout> OMP_NUM_THREADS=1 python tests/training/runs/made_before.py tests/fixtures/runs

The small learner is in float64, where what another processor rounds otherwise stays below 1e-12, and its images are
kept beside it, so that its numbers do not hang on how glyphs are drawn.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import metapeft as mp
from metapeft.cli import run as shell

STEPS, STOP = 8, 4
PLAN: dict[str, Any] = {
    "validate_every": 2, "validation_episodes": 4, "checkpoint_every": 2, "log_every": 2,
}  # fmt: skip
CLASSES = {"train": 12, "val": 8}
TRAIN = (
    "train --quiet --width 3 --rank 2 --tasks-per-step 1 --episodes 3 --validation-episodes 2 --queries 2 "
    "--inner-lrs 0.1 --inner-steps 2 --pretrain-steps 2 --steps 2 --sinusoid-steps 2 --threads 1 "
    "--methods metapeft --methods sr+lora --out"
)
EVALUATE = "--episodes 10 --queries 4"


def images(folder: Path) -> None:
    """Keep three glyphs of 16x16 of some classes of two splits."""
    drawn = {split: mp.load_dataset("glyphs", split=split, size=16, per_class=3).images for split in CLASSES}
    save_file(
        {split: drawn[split][: 3 * count].clone() for split, count in CLASSES.items()},
        folder / "images.safetensors",
    )


def sampler(folder: Path, split: str = "train") -> mp.EpisodeSampler:
    """5-way episodes of one support image and two queries a class."""
    kept, count = load_file(folder / "images.safetensors")[split], CLASSES[split]
    names = [f"{split}{i}" for i in range(count)]
    data = mp.ImageData(
        kept,
        torch.arange(count).repeat_interleave(3),
        names,
        split,
        name="some glyphs",
        mean=[0.15],
        deviation=[0.3],
    )
    return mp.EpisodeSampler(data, 5, 1, 2, seed=3)


def trainer() -> mp.BilevelTrainer:
    """A learner with everything: CP updates, generated seeds, selection, adapted factors, learned rates."""
    body = mp.backbones.conv4(ways=5, channels=1, width=8, size=16, seed=1)
    learner = mp.methods.metapeft(
        body,
        format=mp.CP(2),
        inner=mp.inner.SGD(3, 0.1, rates="step"),
        hidden=4,
        shots=1,
        norm="support",
        dtype=torch.float64,
    )
    return mp.BilevelTrainer(learner, lr=3e-3, tasks_per_step=2, clip=1.0, schedule="cosine", progress=False)


def numbers(learner: mp.Learner, episodes: mp.EpisodeSampler) -> dict[str, Any]:
    """What a learner predicts, scores and derives on fixed episodes."""
    batch = episodes.batch(0, 2)
    logits = learner.adapt_many(batch.support_x, batch.support_y)(batch.query_x)
    found, scored = learner.hypergradient(batch), mp.evaluate(learner, episodes, 6)
    return {
        "logits": logits.tolist(),
        "value": float(found.value),
        "gradients": {name: float(grad.norm()) for name, grad in found.grads.items()},
        "accuracy": scored.accuracy,
        "losses": scored.losses.tolist(),
        "ranks": mp.ranks(learner, "total", total=5),
    }


def printed(*words: str) -> str:
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert shell([word for part in words for word in part.split()]) == 0
    return said.getvalue()


def accuracy(run: Path) -> str:
    """What `metapeft evaluate` says: accuracy, interval and protocol."""
    return printed("evaluate", str(run), EVALUATE).strip()


def cells(run: Path) -> list[str]:
    """The cells of all tables in a run's report, after `metapeft report` wrote it again."""
    printed("report", str(run))
    return re.findall(r"<td[^>]*>(.*?)</td>", (run / "report.html").read_text(encoding="utf-8"))


def main(folder: Path) -> None:
    """Make both runs and `noted.json` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    images(folder)
    train, val = sampler(folder), sampler(folder, "val")
    trainer().fit(train, STEPS, val, folder / "learner", stop_at=STOP, **PLAN)
    loaded = {name: numbers(mp.load(folder / "learner", name), val) for name in ("best", "latest")}
    whole = trainer()
    whole.fit(train, STEPS, val, folder / "whole", **PLAN)
    loaded["end"] = numbers(whole.learner, val)
    last = load_file(folder / "whole/checkpoints/latest.safetensors")
    end = {name: value for name, value in last.items() if name.startswith("learner/")}
    save_file(end, folder / "end.safetensors")
    rows = [json.loads(line) for line in (folder / "whole/metrics.jsonl").read_text().splitlines()]
    printed(TRAIN, str(folder / "train"))
    noted = {
        "learner": loaded,
        "rows": rows,
        "cells": cells(folder / "train"),
        "evaluate": {name: accuracy(folder / "train" / name) for name in ("metapeft", "sr+lora")},
        "ranks": printed("ranks", str(folder / "train/metapeft")),
    }
    (folder / "noted.json").write_text(json.dumps(noted) + "\n")
    for name in ("whole", "train/sr", "train/sr-continued", "train/sinusoid"):  # what no test reads
        shutil.rmtree(folder / name)
    latest = folder / "train/metapeft/checkpoints/latest.safetensors"
    for path in (latest, folder / "train/report.html", *folder.rglob(".lock")):
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

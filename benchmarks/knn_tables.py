"""The tables of nearest neighbours on docs/generation.md, from benchmarks/results/knn."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.knn import BACKBONES, DATA, NEIGHBOURS, SEEDS
from benchmarks.knn_rows import HIDDEN, RANK, ROWS
from metapeft.base.intervals import mean_interval
from metapeft.episodes.protocol import Protocol
from metapeft.experiments.tables import percent

SAID = {
    "resnet20": "ResNet-20, trained on CIFAR-10, updates on its third stage",
    "resnet56": "ResNet-56, trained on CIFAR-10, updates on its third stage",
    "mixer": "MLP-Mixer (patch 4, width 64, depth 4), updates on its last two blocks",
}


class Table:
    """All results of a backbone on a data set.

    Args:
        files: contents of the result files.
    """

    def __init__(self, files: Iterable[dict[str, Any]]) -> None:
        self.files = list(files)
        there = {one["row"] for one in self.files}
        self.rows = [name for name in ROWS if name in there]

    def values(self, row: str, what: str) -> dict[int, Tensor]:
        """Seed -> accuracy in percent of every test episode."""
        return {
            one["seed"]: 100.0 * torch.tensor(one["values"][what], dtype=torch.float64)
            for one in self.files
            if one["row"] == row and what in one["values"]
        }

    def apart(self, row: str, other: str, k: int, shuffled: bool = False) -> tuple[float, float] | None:
        """The difference to another row, or to the row itself with shuffled seeds: mean over training seeds, paired,
        with their 95 % t-interval; None with fewer than two."""
        ours = self.values(row, str(k))
        theirs = self.values(other, f"{k} shuffled" if shuffled else str(k))
        pairs = [float((ours[seed] - theirs[seed]).mean()) for seed in sorted(ours) if seed in theirs]
        return mean_interval(torch.tensor(pairs, dtype=torch.float64)) if len(pairs) > 1 else None

    def helps(self, row: str, k: int) -> bool:
        """Whether a row is ahead of its constant seed, and of itself with shuffled seeds, both intervals off zero."""
        each = [self.apart(row, ROWS[row].constant, k), self.apart(row, row, k, shuffled=True)]
        return all(found is not None and found[0] > found[1] for found in each)

    def cell(self, row: str, what: str) -> str:
        """Mean over training seeds; its half-width over test episodes."""
        values = self.values(row, what)
        return percent(*_over_episodes(values)) if values else ""

    def markdown(self) -> str:
        """A line a row."""
        titles = [f"k = {k}" for k in NEIGHBOURS]
        head = [
            "row",
            *titles,
            *(f"{t}, minus LoRA" for t in titles),
            *(f"{t}, minus constant" for t in titles),
        ]
        lines = [
            f"| {' | '.join([*head, 'trained numbers'])} |",
            "| --- |" + " ---: |" * (3 * len(titles) + 1),
        ]
        for row in self.rows:
            numbers = next(one["parameters"] for one in self.files if one["row"] == row)
            cells = [self.cell(row, str(k)) for k in NEIGHBOURS]
            cells += [_said(self.apart(row, "lora", k)) if row != "lora" else "" for k in NEIGHBOURS]
            constant = ROWS[row].constant
            cells += [_said(self.apart(row, constant, k)) if constant else "" for k in NEIGHBOURS]
            lines.append(f"| {row}: {ROWS[row].about} | {' | '.join(cells)} | {numbers:,} |")
            if constant:
                cells = [self.cell(row, f"{k} shuffled") for k in NEIGHBOURS]
                lines.append(f"| {row}, with the seeds of other images | {' | '.join(cells)} | | | | | |")
        return "\n".join([*lines, "", self.verdict()])

    def verdict(self) -> str:
        """Where a seed for each input helps, by the intervals."""
        generated = [row for row in self.rows if ROWS[row].constant]
        seeds = min((len(self.values(row, str(NEIGHBOURS[0]))) for row in generated), default=0)
        if seeds < len(SEEDS):
            return f"No verdict: it wants {len(SEEDS)} training seeds of each row, and there are {seeds}."
        said = [f"`{row}` at k = {k}" for row in generated for k in NEIGHBOURS if self.helps(row, k)]
        return (
            "A seed for each input helps (ahead of the constant seed and of other images' seeds, both intervals off "
            f"zero): {', '.join(said) if said else 'nowhere'}."
        )

    def note(self) -> str:
        """How it was measured."""
        first = next(one for one in self.files if one["rate"] is not None)
        seeds = sorted({one["seed"] for one in self.files})
        ways, shots, queries = first["train"]
        commits = sorted({str(one["environment"]["commit"])[:9] for one in self.files})
        pretraining = ""
        if first["backbone"] == "mixer":
            own = first["pretraining"]
            pretraining = (
                f" The mixer was pretrained by us, on one softmax over miniImageNet's 64 training classes: "
                f"{own['steps']} steps of {own['group']} images, Adam at {own['lr']:g}."
            )
        return (
            f"Accuracy in %, mean over training seeds {', '.join(map(str, seeds))} ± half-width of the 95 % t-interval "
            f"over test episodes; differences paired, their half-width over the training seeds. "
            f"{Protocol.from_dict(first['protocol'])}. Trained for {first['steps']} steps of one episode of training "
            f"classes ({ways}-way, {shots} shots, {queries} queries, nearest centroids); commits {', '.join(commits)}, "
            f"{first['environment']['cpu']}; `python -m benchmarks.knn all {first['backbone']}`.{pretraining}"
        )


def _over_episodes(values: dict[int, Tensor]) -> tuple[float, float]:
    mean, half = mean_interval(torch.stack(list(values.values())).mean(0))
    return mean / 100, half / 100


def _said(found: tuple[float, float] | None) -> str:
    return "" if found is None else f"{found[0]:+.2f} ± {found[1]:.2f}"


def of_knn(results: Path) -> str:
    """What stands on the page below the other tables; empty where nothing was measured."""
    paths = sorted((results / "knn").glob("*-[0-9].json"))
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    parts = []
    for backbone in BACKBONES:
        for data in DATA:
            own = [one for one in files if (one["backbone"], one["data"]) == (backbone, data)]
            if any(one["rate"] is not None for one in own):
                table = Table(own)
                parts.append(
                    f"### Nearest neighbours, {data}: {SAID[backbone]}\n\n{table.markdown()}\n\n{table.note()}"
                )
    if not parts:
        return ""
    trials = json.loads((results / "knn" / "chosen.json").read_text(encoding="utf-8"))
    chosen = ", ".join(f"{row} {found['rate']:g}" for row, found in trials.items())
    about = (
        f"Each row has at most as many trained numbers as LoRA of rank {RANK}, and at least 98 % of them; the net that "
        f"generates seeds, of hidden width {HIDDEN}, counts. Adam's rate of each row was chosen of "
        f"{', '.join(next(iter(trials.values()))['trials'])} on miniImageNet's validation classes with ResNet-20, the "
        f"same trials for each: {chosen}."
    )
    return "\n\n".join([*parts, about])

"""Tasks of GLUE as rows of texts: at most 2,000 for training, a part of them for every choice, the whole dev set.

Source: Wang et al. 2018, arXiv 1804.07461.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import metapeft as mp
from metapeft.base.errors import DataError
from metapeft.datasets.store import data_root

SENTENCES, CHOOSING = 2000, 0.2  # for training, and the share of them that choices are made on


@dataclass(frozen=True)
class Task:
    """Where a task's columns stand, and what is measured.

    Args:
        folder: of its files. text, pair, label: columns. header: whether the first line has names.
        labels: as the files have them, class 1 last. metrics: the first is the score. tokens: at most.
    """

    folder: str
    text: int
    pair: int | None
    label: int
    header: bool
    labels: tuple[str, str]
    metrics: tuple[str, ...]
    tokens: int


TASKS = {
    "mrpc": Task("MRPC", 3, 4, 0, True, ("0", "1"), ("accuracy", "f1"), 80),
    "rte": Task("RTE", 1, 2, 3, True, ("not_entailment", "entailment"), ("accuracy",), 128),
    "cola": Task("CoLA", 3, None, 1, False, ("0", "1"), ("matthews", "accuracy"), 32),
    "sst2": Task("SST-2", 0, None, 1, True, ("0", "1"), ("accuracy",), 64),
}


@dataclass(frozen=True)
class Parts:
    """Rows of one seed: `all` for the last training, `fit` and `choose` its parts, `dev` the whole dev set."""

    all: Any
    fit: Any
    choose: Any
    dev: Any


def parts(name: str, seed: int, sentences: int = SENTENCES) -> Parts:
    """The rows of a task; the seed draws those for training.

    Raises:
        DataError: files that are missing or have other columns.
    """
    task = TASKS[name]
    rows = _rows(task, "train.tsv")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()[:sentences]
    drawn = [rows[place] for place in order]
    cut = round((1 - CHOOSING) * len(drawn))
    made = [
        mp.TextData(own, "minilm", task.tokens, task.labels, name=f"glue-{name}")
        for own in (drawn, drawn[:cut], drawn[cut:], _rows(task, "dev.tsv"))
    ]
    return Parts(*made)


def _rows(task: Task, file: str) -> list[dict[str, str]]:
    path = data_root(None, f"text/{task.folder}") / file
    if not path.is_file():
        raise DataError(f"{path} is missing: put the task's files there, as GLUE has them")
    lines = path.read_text(encoding="utf-8-sig").splitlines()[task.header :]
    found = []
    for number, line in enumerate(lines, 1):
        cells = line.split("\t")
        try:
            row = {"text": cells[task.text], "label": cells[task.label]}
            if task.pair is not None:
                row["text_pair"] = cells[task.pair]
        except IndexError as error:
            raise DataError(f"{path}: line {number} has {len(cells)} columns") from error
        found.append(row)
    return found

"""Ranks by every rule on tasks of GLUE, at one exact budget.

LoRA on query and value of MiniLM's six layers, ranks 0 to 8, 24 in all; the classifier is trained whole. The rate of
each kind of training is chosen once a task, on a part of the training sentences of a seed that no row has, among as
many for each kind. Rows of one seed have the same sentences, order and classifier at the start.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import metapeft as mp
from benchmarks.language.glue_data import TASKS, Parts, parts
from benchmarks.language.rows import file_of, kept, write

LARGEST, LAYERS, TOTAL = 8, 12, 24
TARGETS = "*attention.self.[qv]*.weight"
EPOCHS, BATCH, CHOICE_SEED = 3, 32, 1000
# tried for each kind, on the part for choices; PEFT's own allocator moves its singular values from 0
RATES = {"lora": (1e-3, 3e-3, 1e-2), "head": (1e-3, 3e-3, 1e-2), "adalora": (3e-3, 1e-2, 3e-2)}
RULES = (
    *("head only", "uniform", "Fisher", "shuffled", "random", "AutoLoRA, threshold", "AutoLoRA, total"),
    *("AdaLoRA", "rank 8"),
)
KIND = {"head only": "head", "AdaLoRA": "adalora"}  # of a rule's training; of the others LoRA


def run(
    tasks: tuple[str, ...] = ("mrpc", "rte", "cola"),
    seeds: int = 5,
    rules: tuple[str, ...] = RULES,
    sentences: int = 2000,
    threads: int = 1,
) -> None:
    """Measure all rows that are not there yet.

    Args:
        tasks: of mrpc, rte, cola and sst2. seeds: 0 to one less. rules: rows. sentences: for training, at most.
    """
    torch.set_num_threads(threads)
    settings = {
        "sentences": sentences, "epochs": EPOCHS, "batch_size": BATCH, "largest": LARGEST, "total": TOTAL,
        "targets": TARGETS, "precision": "bfloat16",
    }  # fmt: skip
    for task in tasks:
        for seed in range(seeds):
            for rule in rules:
                path = file_of("glue", task, rule.replace(", ", "-").replace(" ", "-").lower(), seed)
                if not kept(path, settings):
                    write(path, settings, _row(task, rule, seed, settings))


def _row(task: str, rule: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    begun = time.monotonic()
    kind = KIND.get(rule, "lora")
    chosen = _rate(task, kind, settings)
    data, net = parts(task, seed, settings["sentences"]), backbone(seed)
    ranks, search = None, 0.0
    if kind == "lora":
        ranks, search = _ranks(task, rule, seed, data, chosen["lr"], settings)
    found, ranks = measured(kind, net, data.all, data.dev, ranks, TASKS[task].metrics, chosen["lr"], seed)
    return {
        "task": task, "row": rule, "seed": seed, "score": found[TASKS[task].metrics[0]], "scores": found,
        "ranks": ranks, "rate": chosen, "search_seconds": round(search, 1),
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def backbone(seed: int) -> torch.nn.Module:
    """MiniLM, frozen, with a classifier that the seed draws."""
    net: torch.nn.Module = mp.backbones.minilm(2, trained=0, seed=seed)
    return net


def options(lr: float, seed: int) -> dict[str, Any]:
    """What all trainings share."""
    return {
        "full": ("classifier.*",), "epochs": EPOCHS, "batch_size": BATCH, "lr": lr, "schedule": "linear",
        "options": {"weight_decay": 0.0}, "clip": 1.0, "autocast": torch.bfloat16, "seed": seed,
    }  # fmt: skip


def measured(
    kind: str,
    net: torch.nn.Module,
    train: Any,
    test: Any,
    ranks: dict[str, int] | None,
    metrics: tuple[str, ...],
    lr: float,
    seed: int,
) -> tuple[dict[str, Any], dict[str, int] | None]:
    """Train at these ranks, or as `kind` says, and score on `test`: metrics, the share of class 1, the curve."""
    if kind == "adalora":
        return _adalora(net, train, test, metrics, lr, seed)
    formats: Any = None
    if ranks is not None:
        formats = mp.at_ranks(mp.attach(net, mp.LoRA(LARGEST), targets=TARGETS), ranks)
    seen: Any = (*metrics, positive)
    fitted = mp.finetune(net, train, format=formats, metrics=seen, **options(lr, seed))
    curve = [[line["step"], round(line["loss"], 4)] for line in fitted.log]
    return {**fitted.evaluate(test), "train_loss": fitted.log[-1]["loss"], "curve": curve}, ranks


def positive(outputs: torch.Tensor, y: torch.Tensor) -> float:
    """The share of rows that are called class 1: 0 or 1 where training has not left one class."""
    return float((outputs.argmax(-1) == 1).float().mean())


def _adalora(
    net: torch.nn.Module, train: Any, test: Any, metrics: tuple[str, ...], lr: float, seed: int
) -> tuple[dict[str, Any], dict[str, int]]:
    from benchmarks.language.adalora import trained
    from metapeft.training.finetuning.metrics import resolve_metrics, scored

    targets = ["query", "value"]
    model, ranks, loss = trained(net, train, targets, LARGEST, TOTAL, LAYERS, EPOCHS, BATCH, lr, seed)
    outputs = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for part in torch.split(torch.arange(len(test)), 64):
            outputs.append(model.base_model.model(**test.gather(part)).float())  # type: ignore[operator,union-attr]
    logits = torch.cat(outputs)
    own = torch.nn.functional.cross_entropy(logits, test.labels)
    seen: Any = (*metrics, positive)
    return {
        "loss": float(own),
        **scored(resolve_metrics(seen), float(own), logits, test.labels),
        "train_loss": loss,
    }, ranks


def _rate(task: str, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The rate of the best score on the part for choices, of a seed that no row has; kept as a row."""
    path = file_of("rate", task, kind)
    if not kept(path, settings):
        data, metrics = parts(task, CHOICE_SEED, settings["sentences"]), TASKS[task].metrics
        uniform = mp.ranks(_terms(), "uniform", total=TOTAL) if kind == "lora" else None
        tried = {}
        for lr in RATES[kind]:
            net = backbone(CHOICE_SEED)
            tried[lr], _ = measured(kind, net, data.fit, data.choose, uniform, metrics, lr, CHOICE_SEED)
        best = max(tried, key=lambda lr: (tried[lr][metrics[0]], -tried[lr]["loss"]))
        row = {"task": task, "kind": kind, "score": tried[best][metrics[0]], "lr": best}
        write(path, settings, {**row, "tried": {str(lr): found for lr, found in tried.items()}})
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        "lr": found["lr"],
        "tried": {lr: one[TASKS[task].metrics[0]] for lr, one in found["tried"].items()},
    }


def _terms() -> dict[str, torch.Tensor]:
    sites = mp.attach(backbone(0), mp.LoRA(LARGEST), targets=TARGETS).sites
    return {name: torch.zeros(LARGEST) for name in sites}


def _ranks(
    task: str, rule: str, seed: int, data: Parts, lr: float, settings: dict[str, Any]
) -> tuple[dict[str, int], float]:
    """A rule's ranks, and the seconds of its search."""
    if rule == "uniform":
        return mp.ranks(_terms(), "uniform", total=TOTAL), 0.0
    if rule == "rank 8":
        return mp.ranks(_terms(), "uniform", total=LARGEST * LAYERS), 0.0
    if rule == "random":
        return mp.ranks(_terms(), "random", total=TOTAL, seed=seed), 0.0
    searched = _searched(
        task, "autolora" if rule.startswith("AutoLoRA") else "fisher", seed, data, lr, settings
    )
    values = {name: torch.tensor(own) for name, own in searched["terms"].items()}
    seconds = searched["seconds"]
    pick: dict[str, Callable[[], dict[str, int]]] = {
        "Fisher": lambda: mp.ranks(mp.Scores(values, {}), "total", total=TOTAL),
        "shuffled": lambda: mp.ranks(mp.Scores(values, {}), "shuffled", total=TOTAL, seed=seed),
        "AutoLoRA, threshold": lambda: mp.ranks(values),
        "AutoLoRA, total": lambda: mp.ranks(values, "total", total=TOTAL),
    }
    return pick[rule](), seconds


def _searched(
    task: str, method: str, seed: int, data: Parts, lr: float, settings: dict[str, Any]
) -> dict[str, Any]:
    """A search, kept as a row: scores of terms, or AutoLoRA's logits."""
    path = file_of("search", task, method, seed)
    if not kept(path, settings):
        own: Any = mp.AutoLoRARanks(lr=0.01) if method == "autolora" else method
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that logits have hardly moved: the row keeps them
            found = mp.search_ranks(
                backbone(seed), data.fit, data.choose, format=mp.LoRA(LARGEST), targets=TARGETS, method=own,
                total=TOTAL, **options(lr, seed),
            )  # fmt: skip
        terms = found.logits if found.scores is None else found.scores.values
        if terms is None:
            raise ValueError(f"the search by {method} has neither scores nor logits")
        row = {"task": task, "method": method, "seed": seed, "seconds": found.seconds, "curve": found.curve}
        write(path, settings, {**row, "terms": {name: value.tolist() for name, value in terms.items()}})
    kept_row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept_row

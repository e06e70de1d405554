"""Positive controls inside MiniLM: where ranks are known to matter, does a rule find them, and does it show?

Planted: a teacher is MiniLM with updates of known ranks on query and value of its layers; a student without them learns
its sentence vectors, at noise, from 1,600 sentences of CLINC150. Random: query and value of three layers of six, drawn
by the seed, have random weights, frozen as the others; 24 terms are dealt to intents of CLINC150 as a classification.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from benchmarks.language.glue import BATCH, LARGEST, LAYERS, TARGETS, TOTAL
from benchmarks.language.rows import file_of, kept, write
from benchmarks.planted_ranks import shuffled
from metapeft.datasets.intents import first, sentences

TOKENS, NOISE, SIZE = (
    16,
    0.1,
    0.5,
)  # of a sentence; of the teacher's outputs; of an update, in parts of its layer
PLANTED_STEPS, PLANTED_RATE, EPOCHS, RATE = 400, 5e-3, 3, 3e-3


def run(seeds: int = 3, only: tuple[str, ...] = ("planted", "random"), threads: int = 1) -> None:
    """Measure all rows that are not there yet: seeds 0 to one less of each control."""
    torch.set_num_threads(threads)
    made = {"planted": (_planted, {"noise": NOISE, "size": SIZE, "steps": PLANTED_STEPS, "lr": PLANTED_RATE})}
    made |= {"random": (_random, {"epochs": EPOCHS, "lr": RATE})}
    for seed in range(seeds):
        for name in only:
            measure, chosen = made[name]
            settings: dict[str, Any] = {**chosen, "total": TOTAL, "largest": LARGEST, "precision": "bfloat16"}
            path = file_of("controls", name, seed)
            if not kept(path, settings):
                begun = time.monotonic()
                row = {"control": name, "seed": seed, **measure(seed)}
                write(path, settings, {**row, "seconds": round(time.monotonic() - begun, 1)})


def _student() -> nn.Module:
    """MiniLM whose output is the sentence's vector: a classifier that is the identity, frozen like the rest."""
    net: Any = mp.backbones.minilm(384, trained=0)
    with torch.no_grad():
        net.classifier.weight.copy_(torch.eye(384))
        net.classifier.bias.zero_()
    net.requires_grad_(False)
    frozen: nn.Module = net
    return frozen


def _sites(net: nn.Module) -> dict[str, Tensor]:
    return {name: net.get_parameter(name) for name in mp.attach(net, mp.LoRA(1), targets=TARGETS).sites}


def _generator(seed: int, part: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + part)


def _texts(count: int) -> mp.TextData:
    rows = first(sentences("clinc150"), count)
    return mp.TextData([{"text": t, "label": label} for t, label in rows], "minilm", TOKENS, name="clinc150")


def _planted(seed: int) -> dict[str, Any]:
    net, teacher = _student(), _student()
    names = list(_sites(net))
    drawn = torch.randint(0, 5, (len(names),), generator=_generator(seed, 1)).tolist()
    truth = {name: 2 * half for name, half in zip(names, drawn)}  # 0, 2, 4, 6 or 8
    random = _generator(seed, 2)
    for name, rank in truth.items():
        weight = teacher.get_parameter(name)
        u, v = (torch.linalg.qr(torch.randn(384, 384, generator=random))[0][:, :rank] for _ in range(2))
        weight.data += SIZE * torch.linalg.matrix_norm(weight.data, 2) * u @ v.T
    data = _texts(18)
    order = torch.randperm(len(data), generator=_generator(seed, 3))[:2700]
    x = data.gather(order)
    with torch.no_grad():
        exact = torch.cat(
            [teacher(**{k: v[i] for k, v in x.items()}) for i in torch.split(torch.arange(len(order)), 64)]
        )
    y = exact + NOISE * float(exact.std()) * torch.randn(exact.shape, generator=_generator(seed, 4))
    cuts = {
        "train": slice(0, 1600),
        "validation": slice(1600, 2000),
        "both": slice(0, 2000),
        "test": slice(2000, 2700),
    }
    rows = {
        part: ({k: v[own] for k, v in x.items()}, (exact if part == "test" else y)[own])
        for part, own in cuts.items()
    }
    options: dict[str, Any] = {
        "steps": PLANTED_STEPS, "batch_size": BATCH, "lr": PLANTED_RATE, "schedule": "cosine", "loss": F.mse_loss,
        "options": {"weight_decay": 0.0}, "autocast": torch.bfloat16, "seed": seed,
    }  # fmt: skip
    total = sum(truth.values())
    rules = {**_rules(net, rows["train"], rows["validation"], total, seed, options), "planted": truth}
    rules["shuffled"] = shuffled(truth, seed)
    found = {}
    for rule, ranks in rules.items():
        formats: Any = mp.at_ranks(mp.attach(net, mp.LoRA(LARGEST), targets=TARGETS), ranks)
        fitted = mp.finetune(net, rows["both"], format=formats, **options)
        within = sum(abs(rank - truth[name]) <= 1 for name, rank in ranks.items()) / len(truth)
        found[rule] = {"ranks": ranks, "within_1": within, "loss": fitted.evaluate(rows["test"])["loss"]}
        print(f"planted, seed {seed}, {rule}: {within:.2f}, {found[rule]['loss']:.5f}", flush=True)
    return {"rules": found, "score": found["Fisher, total"]["within_1"]}


def _rules(
    net: nn.Module, train: Any, validation: Any, total: int, seed: int, options: dict[str, Any]
) -> dict[str, dict[str, int]]:
    """Ranks by the rules that look at the data, and by those that do not."""
    given = {"format": mp.LoRA(LARGEST), "targets": TARGETS, "total": total, **options}
    fisher = mp.search_ranks(net, train, validation, method="fisher", **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that logits have hardly moved
        autolora = mp.search_ranks(net, train, validation, method=mp.AutoLoRARanks(lr=0.01), **given)
    even = {name: torch.zeros(LARGEST) for name in fisher.ranks}
    return {
        "Fisher, total": fisher.ranks,
        "AutoLoRA, total": autolora.ranks,
        "AutoLoRA, threshold": mp.ranks(autolora.logits),
        "uniform": mp.ranks(even, "uniform", total=total),
        "random": mp.ranks(even, "random", total=total, seed=seed),
    }


def _random(seed: int) -> dict[str, Any]:
    data = _texts(25)
    chosen = torch.randperm(150, generator=_generator(seed, 5))[:30]
    mine = torch.isin(data.labels, chosen).nonzero().flatten()
    mine = mine[torch.randperm(len(mine), generator=_generator(seed, 6))]
    x, y = data.gather(mine), torch.searchsorted(chosen.sort().values, data.labels[mine])
    cuts = {
        "train": slice(0, 240),
        "validation": slice(240, 300),
        "both": slice(0, 300),
        "test": slice(300, 750),
    }
    rows = {part: ({k: v[own] for k, v in x.items()}, y[own]) for part, own in cuts.items()}
    net = mp.backbones.minilm(30, trained=0, seed=seed)
    layers = torch.randperm(6, generator=_generator(seed, 7))[:3].tolist()
    places, random = [f".layer.{layer}." for layer in layers], _generator(seed, 8)
    for name, weight in _sites(net).items():
        if any(place in name for place in places):
            weight.data = torch.randn(weight.shape, generator=random) * weight.data.std()
    options: dict[str, Any] = {
        "full": ("classifier.*",), "epochs": 10 * EPOCHS, "batch_size": 16, "lr": RATE, "schedule": "linear",
        "options": {"weight_decay": 0.0}, "clip": 1.0, "autocast": torch.bfloat16, "seed": seed,
    }  # fmt: skip
    rules = _rules(net, rows["train"], rows["validation"], TOTAL, seed, options)
    each = 2 * TOTAL // LAYERS
    for rule, wanted in (("random half only", True), ("pretrained half only", False)):
        rules[rule] = {n: each * (any(place in n for place in places) is wanted) for n in rules["uniform"]}
    found = {}
    for rule, ranks in rules.items():
        formats: Any = mp.at_ranks(mp.attach(net, mp.LoRA(LARGEST), targets=TARGETS), ranks)
        fitted = mp.finetune(net, rows["both"], format=formats, metrics=("accuracy",), **options)
        own = sum(rank for name, rank in ranks.items() if any(place in name for place in places))
        found[rule] = {"ranks": ranks, "on_random": own, **fitted.evaluate(rows["test"])}
        print(
            f"random, seed {seed}, {rule}: {own} of {sum(ranks.values())}, {found[rule]['accuracy']:.3f}",
            flush=True,
        )
    return {"layers": layers, "rules": found, "score": found["Fisher, total"]["on_random"]}

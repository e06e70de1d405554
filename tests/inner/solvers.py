"""Inner solvers with settings off the beaten track, and the optimisers of torch that they follow."""

from __future__ import annotations

import re
from typing import Any

import torch

from metapeft import inner as mi

OPTIM = torch.optim


def named(value: object) -> str:
    """A test's id: the same in every process, so without the addresses of functions."""
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", repr(value))


#: every name of the table: solvers, and the optimiser of torch whose steps theirs are
PAIRS: dict[str, list[tuple[mi.Solver, Any, dict[str, Any]]]] = {
    "sgd": [
        (mi.SGD(8, 0.3), OPTIM.SGD, {"lr": 0.3}),
        (mi.SGD(8, 0.3, weight_decay=0.1), OPTIM.SGD, {"lr": 0.3, "weight_decay": 0.1}),
    ],
    "momentum": [
        (mi.Momentum(8, 0.1, 0.9), OPTIM.SGD, {"lr": 0.1, "momentum": 0.9}),
        (
            mi.Momentum(8, 0.1, 0.7, dampening=0.3, weight_decay=0.2),
            OPTIM.SGD,
            {"lr": 0.1, "momentum": 0.7, "dampening": 0.3, "weight_decay": 0.2},
        ),
    ],
    "nesterov": [(mi.Nesterov(8, 0.1, 0.8), OPTIM.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True})],
    "adam": [
        (mi.Adam(8, 0.1), OPTIM.Adam, {"lr": 0.1}),
        (mi.Adam(8, 0.1, (0.5, 0.9), eps=0.1), OPTIM.Adam, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 0.1}),
        (mi.Adam(8, 0.1, weight_decay=0.3), OPTIM.Adam, {"lr": 0.1, "weight_decay": 0.3}),
    ],
    "adamw": [
        (mi.AdamW(8, 0.1), OPTIM.AdamW, {"lr": 0.1}),
        (mi.AdamW(8, 0.1, weight_decay=0.5), OPTIM.AdamW, {"lr": 0.1, "weight_decay": 0.5}),
    ],
    "lbfgs": [
        (
            mi.LBFGS(12, 0.8, memory=3),
            OPTIM.LBFGS,
            {"lr": 0.8, "max_iter": 1, "history_size": 3, "tolerance_grad": 0, "tolerance_change": 0},
        ),
    ],
}
#: every solver of the table that takes steps, by its class
STEPPING: dict[str, list[mi.Solver]] = {
    "SGD": [mi.SGD(3, 0.2, clip=0.5), mi.SGD(3, 0.2, proximal=0.5, weight_decay=0.1)],
    "Momentum": [mi.Momentum(3, 0.1, 0.9, clip=0.3), mi.Momentum(3, 0.1, 0.9, proximal=0.3)],
    "Nesterov": [mi.Nesterov(3, 0.1)],
    "Adam": [mi.Adam(3, 0.1), mi.Adam(3, 0.1, eps_root=1e-3)],
    "AdamW": [mi.AdamW(3, 0.1, weight_decay=0.3)],
    "LBFGS": [mi.LBFGS(4, 0.5, memory=2)],
    "Proximal": [
        mi.Proximal(
            3, lambda u, w, lr: {n: x.sign() * (x.abs() - 0.05 * lr).clamp_min(0) for n, x in w.items()}, 0.2
        )
    ],
    "Projected": [mi.Projected(3, lambda u, w: {n: x / x.norm().clamp_min(1.0) for n, x in w.items()}, 0.2)],
    "Step": [
        mi.Step(lambda u, w, g: {n: w[n] - 0.1 * u["c"].square().sum() * torch.tanh(g[n]) for n in w}, 3)
    ],
    "FixedPoint": [
        mi.FixedPoint(lambda u, w: {"a": w["a"].cos() * u["c"], "b": (w["b"] + w["a"].sum(0)).sin()}, 3)
    ],
    "Higher": [
        mi.Higher(torch.optim.SGD, 3, lr=0.1, momentum=0.9),
        mi.Higher(torch.optim.Adam, 3, lr=0.1),
        mi.Higher(torch.optim.Adagrad, 3, lr=0.1),
    ],
}
SOLVERS = [solver for solvers in STEPPING.values() for solver in solvers]


def against_torch() -> list[tuple[mi.Solver, Any, dict[str, Any]]]:
    """The entries of `PAIRS` one after another."""
    return [pair for pairs in PAIRS.values() for pair in pairs]

"""Hypergradients on the device against those on the CPU, in float64: every engine, format, statistic and layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import metapeft as mp
from benchmarks.gpu.part import Context, Part, difference, row

BAR = 1e-10
SGD = mp.inner.SGD
BOTH = ("weights", "factors")
NEAR = {"inner": SGD(10, 0.2, proximal=4.0), "outer": BOTH}
# engine -> options of the learner, LoRA unless said
ENGINES: dict[str, dict[str, Any]] = {
    "unroll": {"inner": SGD(3, 0.1, rates="step"), "outer": (*BOTH, "rates")},
    "recompute": {"inner": SGD(3, 0.1), "outer": BOTH},
    "truncated": {"inner": SGD(3, 0.1), "outer": BOTH},
    "multi-step": {"inner": SGD(3, 0.1), "outer": BOTH},
    "forward": {"inner": SGD(2, 0.1, rates="step"), "outer": ("rates",)},
    "first-order": {"inner": SGD(3, 0.1), "outer": BOTH},
    "envelope": {"inner": SGD(3, 0.1), "outer": ("weights",)},
    "direct": {"inner": None, "outer": BOTH, "head": "prototypes"},
    "finite-difference": {"inner": SGD(1, 0.1), "outer": BOTH},
    "autolora": {"inner": SGD(1, 0.1), "outer": ("selection",), "selection": "softmax"},
    "neumann": NEAR,
    "cg": NEAR,
    "exact": {**NEAR, "adapt": ["classifier.*"], "head": "learned"},
    "fixed-point": NEAR,
    "soba": {"inner": SGD(1, 0.1), "outer": ("weights",)},
    "reptile": {"inner": SGD(3, 0.1), "format": mp.Full(), "head": "learned"},
}
FORMATS: dict[str, Any] = {
    "full": mp.Full(),
    "lora": mp.LoRA(2, 4.0),
    "cp": mp.CP(2),
    "cp, shift and gate": mp.CP(2, shift=True, gate=True),
    "tensor-ring": mp.TensorRing(2),
}
HEADS = ("learned", "zero", "prototype-init", "cosine", "prototypes", "ridge", "weighted-ridge", "logistic")
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "conv4": lambda: mp.backbones.conv4(5, width=4, size=16),
    "resnet12": lambda: mp.backbones.resnet12(5, channels=1, width=4, size=16),
    "vit": lambda: mp.backbones.vit(5, channels=1, width=8, size=16, patch=8, depth=2, heads=2),
    "mixer": lambda: mp.backbones.mixer(5, channels=1, width=8, size=16, patch=8, depth=2),
    "lstm": lambda: Recurrent(),
}


class Recurrent(nn.Module):
    """Rows of an image as the words of a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(16, 6, batch_first=True)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.cells(x.flatten(1, 2))[0][:, -1])
        return out


def batch(tasks: int = 2) -> mp.EpisodeBatch:
    """Two tasks of 5-way 2-shot noise in float64."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(5).repeat(2).expand(tasks, -1).contiguous()
    x = [torch.randn(tasks, 10, 1, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    return mp.EpisodeBatch(x[0], y, x[1], y, classes=torch.arange(5).expand(tasks, -1))


def learner(engine: str = "unroll", body: str = "conv4", norm: str = "running", **options: Any) -> mp.Learner:
    """A learner on the CPU in float64, its zero starts moved."""
    torch.manual_seed(0)
    format = options.pop("format", FORMATS["lora"])
    model = mp.attach(BACKBONES[body]().double(), format, "all", norm=norm)
    chosen = {"head": "prototype-init", "hypergradient": engine, **options}
    made = mp.Learner(model, chosen.pop("inner"), **chosen)
    generator = torch.Generator().manual_seed(1)
    for name in sorted(made.trained):
        if name.startswith("factors."):
            value = made.trained[name]
            value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype).mul_(0.1).to(value))
    return made


def compared(context: Context, make: Callable[[], mp.Learner]) -> dict[str, Any]:
    """The gradient on the CPU, then on the device, and how far they are apart."""
    made, tasks = make(), batch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a linear solve stopped before its tolerance
        expected = {name: value.clone() for name, value in made.hypergradient(tasks).grads.items()}
        made.to(context.device)
        found = dict(made.hypergradient(tasks.to(context.device)).grads)
    places = {value.device.type for value in found.values()}
    apart = difference(found, expected)
    moved = max(float(value.abs().max()) for value in expected.values())
    return {"difference": apart, "passed": apart <= BAR and places == {context.device.type} and moved > 0}


def rows(cases: Mapping[str, Callable[[], mp.Learner]]) -> Callable[[Context], list[dict[str, Any]]]:
    """A row a case."""

    def run(context: Context) -> list[dict[str, Any]]:
        return [row(name, partial(compared, context, make)) for name, make in cases.items()]

    return run


def _cases() -> dict[str, dict[str, Callable[[], mp.Learner]]]:
    step: dict[str, Any] = {"inner": SGD(2, 0.1), "outer": BOTH}
    formats: dict[str, Callable[[], mp.Learner]] = {
        f"{name}, {norm}": partial(
            learner,
            norm=norm,
            format=value,
            inner=SGD(2, 0.1),
            outer=("weights",) if name == "full" else BOTH,
        )
        for name, value in FORMATS.items()
        for norm in ("running", "support", "transductive")
    }
    encoders: dict[str, Callable[[], mp.Learner]] = {
        name: partial(
            learner, format=mp.CP(2), generator=getattr(mp.generators, name)(hidden=4), inner=SGD(2, 0.1),
            outer=(*BOTH, "generator"),
        )
        for name in ("MappingNet", "ClassEncoder")
    }  # fmt: skip
    return {
        "engines": {name: partial(learner, name, **options) for name, options in ENGINES.items()},
        "formats": formats,
        "heads": {name: partial(learner, head=name, **step) for name in HEADS},
        "backbones": {name: partial(learner, body=name, **step) for name in BACKBONES},
        "generators": encoders,
    }


PARTS = tuple(Part(f"equal {name}", rows(cases)) for name, cases in _cases().items())

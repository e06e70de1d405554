"""Torch's own layers in the ways that people put them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import metapeft as mp
from benchmarks.models.case import Case, Inputs, floats, integers
from benchmarks.models.layer_nets import (
    Called,
    Experts,
    Graph,
    Loose,
    Named,
    OwnMatrix,
    Recurrent,
    Siamese,
    Standardised,
    Steps,
    Thrice,
    Translator,
    encoder,
)

MADE = Callable[[], nn.Module]


def case(name: str, make: MADE, inputs: Inputs, **more: Any) -> Case:
    """A case with its format."""
    return Case(name, make, inputs, **more)


def _volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv3d(3, 4, 2, 2), nn.Flatten(), nn.Linear(32, 3)
    )


def _signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.GELU(), nn.Conv1d(4, 4, 3, dilation=2), nn.Flatten(), nn.Linear(24, 3)
    )


def _groups() -> nn.Module:
    first = nn.Conv2d(4, 8, 3, padding=1, groups=2, padding_mode="reflect")
    return nn.Sequential(first, nn.SiLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(128, 3))


def _autoencoder() -> nn.Module:
    down = (nn.Conv2d(1, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 6, 3, 2, 1), nn.Tanh())
    return nn.Sequential(
        *down, nn.ConvTranspose2d(6, 4, 2, 2), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2, 2, groups=2)
    )


def _weight_norm() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(4, 6)), nn.Tanh(), norm(nn.Linear(6, 3)))


def _old_weight_norm() -> nn.Module:
    norm = nn.utils.weight_norm
    return nn.Sequential(norm(nn.Linear(4, 6)), nn.Tanh(), norm(nn.Linear(6, 3)))


def _spectral_norm() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


def _orthogonal() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))


def _instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 3)
    )


class Pairs(nn.Module):
    """A bilinear layer on an input and its square."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.last = nn.Bilinear(4, 4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.tanh(self.both(x, x.square())))


class Bags(nn.Module):
    """A bag of words."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(20, 6, mode="mean"), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.bag(x))


class UnderName(nn.Module):
    """An output in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.layer(x)}


FULL = {"format": mp.Full()}
SEQUENCES = [
    case("nn.Transformer batch_first", lambda: Translator(batch_first=True), floats(5, 8)),
    case("nn.Transformer seq first", lambda: Translator(batch_first=False), floats(5, 8)),
    case("TransformerEncoder + loose cls,pos", Loose, floats(5, 8)),
    case("TransformerEncoder seq first", lambda: encoder(batch_first=False), floats(5, 8)),
    case(
        "TransformerEncoder norm_first gelu",
        lambda: encoder(norm_first=True, activation="gelu"),
        floats(5, 8),
    ),
    case("LSTM classifier", lambda: Recurrent(nn.LSTM), floats(5, 4)),
    case(
        "LSTM bidirectional, 2 layers",
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        floats(5, 4),
    ),
    case("GRU", lambda: Recurrent(nn.GRU), floats(5, 4)),
    case("RNN seq first", lambda: Recurrent(nn.RNN, batch_first=False), floats(5, 4)),
    case("GRUCell loop", Steps, floats(5, 4)),
    case("LSTM, Full", lambda: Recurrent(nn.LSTM), floats(5, 4), **FULL),
]
SPACES = [
    case("Conv3d net", _volume, floats(1, 4, 4, 4)),
    case("Conv1d net", _signal, floats(2, 12)),
    case("Conv grouped, reflect padding", _groups, floats(4, 6, 6)),
    case("ConvTranspose2d autoencoder LoRA", _autoencoder, floats(1, 8, 8)),
    case("ConvTranspose2d autoencoder Full", _autoencoder, floats(1, 8, 8), **FULL),
    case("instance norm affine + PReLU", _instance_norm, floats(1, 8, 8)),
    case("instance norm affine + PReLU, Full", _instance_norm, floats(1, 8, 8), **FULL),
]
COMPUTED = [
    case("weight_norm (parametrizations)", _weight_norm, floats(4)),
    case("weight_norm (old)", _old_weight_norm, floats(4)),
    case("spectral_norm", _spectral_norm, floats(4)),
    case("orthogonal", _orthogonal, floats(4)),
    case("F.linear on own Parameter", OwnMatrix, floats(4)),
    case("subclass of Linear", lambda: Named("layer", kind=Called), floats(4)),
    case("weight-standardised Conv2d subclass", lambda: Standardised(), floats(2, 6, 6)),
]
SHARED = [
    case("same layer 3 times", Thrice, floats(4)),
    case("siamese", Siamese, lambda source, rows: (floats(4)(source, rows), floats(4)(source, rows))),
    case("MoE top-1 by indexing", Experts, floats(4), items=4),
    case("Bilinear", Pairs, floats(4)),
    case("Bilinear, Full", Pairs, floats(4), **FULL),
    case("EmbeddingBag", Bags, integers(20, 5)),
    case("output dict 'out'", UnderName, floats(4)),
    case("GNN dense adjacency", Graph, floats(5, 4)),
]
WORDS = ("head", "weights", "factors", "generator", "seed", "support", "query", "kept", "rates",
         "selection", "weight", "delta")  # fmt: skip
NAMES = [
    *(case(f"module '{name}'", lambda name=name: Named(name), floats(4)) for name in WORDS),  # type: ignore[misc]
    case("module 'head', Full", lambda: Named("head"), floats(4), **FULL),
]
GROUPS = {
    "sequences": SEQUENCES,
    "spaces": SPACES,
    "computed weights": COMPUTED,
    "shared layers": SHARED,
    "names": NAMES,
}

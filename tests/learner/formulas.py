"""Updates, heads and generated seeds of one task, each by the formula of the design or of its paper."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import metapeft as mp

Tensors = dict[str, Tensor]

#: the factors of each format, by their local names
FACTORS: dict[type, tuple[str, ...]] = {
    mp.Full: ("delta",),
    mp.LoRA: ("A", "B"),
    mp.CP: ("A", "B", "seed"),
    mp.TensorRing: ("A", "B", "seed"),
}
#: what each head learns itself
LEARNED: dict[str, tuple[str, ...]] = {
    "learned": (),
    "zero": (),
    "prototype-init": ("log_scale",),
    "prototypes": ("log_scale",),
    "cosine": (),
    "ridge": ("log_penalty", "log_scale", "bias"),
    "weighted-ridge": ("log_penalty", "log_scale", "bias"),
}
#: heads whose tensors inner steps move
ADAPTED_HEADS = ("zero", "prototype-init", "cosine")


def delta(format: Any, own: Tensors) -> Tensor:
    """The update of one parameter from its factors without task axis."""
    if type(format) is mp.Full:
        return own["delta"]
    rank = own["B"].shape[1] if type(format) is not mp.TensorRing else own["B"].shape[0]
    scale = 1.0 if format.alpha is None else format.alpha / rank
    if type(format) is mp.LoRA:
        return scale * torch.einsum("or,ri...->oi...", own["B"], own["A"])
    if type(format) is mp.CP:
        return scale * torch.einsum("or,r,ri...->oi...", own["B"], own["seed"], own["A"])
    assert type(format) is mp.TensorRing, f"no formula of {format} here"
    return scale * torch.einsum("ai...b,boc,ca->oi...", own["A"], own["B"], own["seed"])


def selected(format: Any, local: str, value: Tensor, logits: Tensor | None) -> Tensor:
    """A factor under the softmax of its layer's logits: LoRA's rows of A, CP's seed, the ring's bond r1."""
    if logits is None:
        return value
    weighed = {mp.LoRA: "A", mp.CP: "seed", mp.TensorRing: "A"}[type(format)]
    if local != weighed:
        return value
    weights = logits.softmax(0)
    rows = type(format) is mp.LoRA
    return value * (weights.reshape(-1, *[1] * (value.ndim - 1)) if rows else weights)


def head(kind: str, own: Tensors, features: Tensor, y: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """Weight `(N, F)` and bias `(N,)` of a head on one task's items; `own`: what the head learns."""
    absent = torch.tensor([0.0 if (y == n).any() else -1e9 for n in range(ways)], dtype=features.dtype)
    if kind == "zero":
        return features.new_zeros(ways, features.shape[1]), absent
    if kind in ("prototype-init", "prototypes", "cosine"):
        read = unit(features) if kind == "cosine" else features
        none = features.new_zeros(features.shape[1])
        centres = torch.stack([read[y == n].mean(0) if (y == n).any() else none for n in range(ways)])
        if kind == "cosine":
            return unit(centres), absent
        scale = own["log_scale"].exp()
        return 2 * scale * centres, -scale * centres.square().sum(1) + absent
    assert kind in ("ridge", "weighted-ridge"), f"no formula of {kind} here"
    rows = F.one_hot(y, ways).to(features)
    count = rows.sum(0)
    each = len(y) / ((count > 0).sum() * count.clamp_min(1)) if kind == "weighted-ridge" else count * 0 + 1
    s = each[y]
    eye = torch.eye(len(y), dtype=features.dtype)
    # (X'SX + p I)^-1 X'S Y = X' (S X X' + p I)^-1 S Y
    dual = torch.linalg.inv(s[:, None] * (features @ features.T) + own["log_penalty"].exp() * eye)
    weight = (features.T @ dual @ (s[:, None] * rows)).T * own["log_scale"].exp()
    return weight, absent + own["bias"]


def unit(rows: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays."""
    size = rows.square().sum(-1, keepdim=True)
    return torch.where(size > 0, rows / torch.where(size > 0, size, 1.0).sqrt(), rows)


def logits(kind: str, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits `(B, N)` of a head: linear, or ten times the cosines."""
    if kind == "cosine":
        return 10.0 * unit(features) @ unit(weight).T + bias
    return features @ weight.T + bias


def mapped(own: Tensors, features: Tensor, starts: Tensors) -> Tensors:
    """Seeds from the mean features `(F,)` of a task, by the mapping net with parameters `own`."""
    z = F.layer_norm(features, features.shape)
    hidden = F.relu(own["hidden.weight"] @ z + own["hidden.bias"])
    return {
        name: start + (own[f"{name}.weight"] @ hidden + own[f"{name}.bias"]).reshape(start.shape)
        for name, start in starts.items()
    }

"""Linear layers with planted updates, for searches that know the answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import metapeft as mp

TRUTH = {"0.weight": 1, "2.weight": 3, "4.weight": 0}


class Net(nn.Sequential):
    """Three layers of width 6."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))


def planted() -> tuple[Net, Any, Any]:
    """The student, and training and validation rows of the teacher."""
    generator = torch.Generator().manual_seed(1)
    teacher, x = Net(), torch.randn(400, 6, generator=generator)
    for name, rank in TRUTH.items():
        u, v = (torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:, :rank] for _ in range(2))
        teacher.get_parameter(name).data += u @ v.T
    with torch.no_grad():
        y = teacher(x) + 0.05 * torch.randn(400, 6, generator=generator)
    return Net(), (x[:300], y[:300]), (x[300:], y[300:])


def options(**more: Any) -> dict[str, Any]:
    """Of a search that is long enough."""
    return {
        "format": mp.LoRA(4), "steps": 100, "lr": 0.05, "schedule": "cosine", "batch_size": 100,
        "loss": torch.nn.functional.mse_loss, **more,
    }  # fmt: skip


def close(found: dict[str, int]) -> bool:
    """Whether every layer is within 1 of the planted rank."""
    return all(abs(found[name] - rank) <= 1 for name, rank in TRUTH.items())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)

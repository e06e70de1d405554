"""Schedules of the outer rate, all of them torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def resolve_schedule(
    schedule: str | Callable[[torch.optim.Optimizer, int], Any] | None,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> Any:
    """The scheduler that `schedule` stands for: None, `"cosine"`, or what a function `(optimizer, steps)` gives.

    Raises:
        ValueError: any other string.
    """
    if schedule is None:
        return None
    if callable(schedule):
        return schedule(optimizer, steps)
    if schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    raise ValueError(
        f'schedule={schedule!r}: allowed are None, "cosine", or a function (optimizer, steps) -> scheduler'
    )

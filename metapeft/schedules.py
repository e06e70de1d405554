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
        ValueError: any other string, or a scheduler that does not count steps.
    """
    if schedule is None:
        return None
    if callable(schedule):
        made = schedule(optimizer, steps)
        if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError(
                "schedule gives a ReduceLROnPlateau, which wants a validation score at every step: take one that "
                "counts steps, such as CosineAnnealingLR"
            )
        return made
    if schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    raise ValueError(
        f'schedule={schedule!r}: allowed are None, "cosine", or a function (optimizer, steps) -> scheduler'
    )

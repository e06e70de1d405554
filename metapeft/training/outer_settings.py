"""How the outer variables of a run are moved, as a trainer was given it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import by_name, flag, number, whole
from metapeft.base.machine.byte_units import parse_bytes
from metapeft.learner.settings import of
from metapeft.training.progress_bar import Told
from metapeft.training.projecting import check_projections


@dataclass(frozen=True)
class OuterSettings:
    """The arguments of a `BilevelTrainer`, which says what they mean, without what it trains and where.

    Raises:
        ValueError: a number out of range, options that are no dict, what is no optimiser.

    Example:
        >>> OuterSettings(torch.optim.SGD, memory="8GiB").memory_bytes
        8589934592
        >>> OuterSettings(torch.optim.SGD, chunk=0)
        Traceback (most recent call last):
        ValueError: chunk=0: allowed is a whole number of at least 1
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float | Mapping[str, float] = 1e-3
    tasks_per_step: int = 16
    chunk: int | None = None
    clip: float | None = None
    schedule: Any = None
    warm_start: bool = False
    inner_every: int = 1
    options: Mapping[str, Any] | None = None
    memory: int | str | None = None
    progress: bool | Told = True
    ema: float | None = None
    direct_steps: int = 0
    projections: Mapping[str, Callable[[Tensor], Tensor]] | None = None
    diverged: str = "raise"

    def __post_init__(self) -> None:
        if not callable(self.optimizer):
            raise ValueError(f"optimizer={self.optimizer!r}: a class is needed, such as torch.optim.Adam")
        one = 1 if self.chunk is None else self.chunk
        whole(tasks_per_step=self.tasks_per_step, chunk=one, inner_every=self.inner_every)
        whole(0, direct_steps=self.direct_steps)
        flag(warm_start=self.warm_start)
        if self.clip is not None:
            number(above=True, clip=self.clip)
        number(0, 1, above=True, more="such as 0.999, or None", ema=0.5 if self.ema is None else self.ema)
        by_name("settings", options=self.options or {})
        check_projections(self.projections or {})
        if self.diverged not in ("raise", "skip"):
            raise ValueError(f"diverged={self.diverged!r}: allowed are 'raise' and 'skip'")
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int | None:
        """What this process may hold."""
        return None if self.memory is None else parse_bytes(self.memory)

    def as_json(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Everything that the outcome depends on, as JSON can say it; `optimizer` is what was made of it."""
        custom = self.schedule is not None and not isinstance(self.schedule, str)
        options = self.options or {}
        later: dict[str, Any] = {} if self.ema is None else {"ema": self.ema}  # runs of before do not have it
        later |= {"direct_steps": self.direct_steps} if self.direct_steps else {}
        later |= {"diverged": self.diverged} if self.diverged != "raise" else {}
        if self.projections:
            later["projections"] = {name: of(project) for name, project in self.projections.items()}
        return {
            **later,
            "optimizer": type(optimizer).__name__,
            "options": {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()},
            "lr": dict(self.lr) if isinstance(self.lr, Mapping) else self.lr,
            "tasks_per_step": self.tasks_per_step,
            "chunk": self.chunk,
            "clip": self.clip,
            "schedule": "custom" if custom else self.schedule,
            "warm_start": self.warm_start,
            "inner_every": self.inner_every,
            "memory": self.memory_bytes,
        }

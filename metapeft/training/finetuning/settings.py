"""How a fine-tuning moves its updates, as `mp.finetune` was asked; all of it is stored with a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from metapeft.base.arguments import by_name, flag, number, seed_number, whole
from metapeft.learner.settings import of_loss
from metapeft.training.finetuning.metrics import Metric, resolve_metrics
from metapeft.training.optimizer import check_warmup


@dataclass(frozen=True)
class FineTuning:
    """The arguments of `mp.finetune` that say how it trains; that function explains them.

    Raises:
        ValueError: a number out of range, both or none of steps and epochs, an unknown metric or monitor.

    Example:
        >>> FineTuning(steps=3, epochs=2)
        Traceback (most recent call last):
        ValueError: steps=3, epochs=2: one of them says how long the training is
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 32
    micro_batch: int | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    lr: float = 1e-3
    schedule: Any = None
    warmup: float = 0.0
    options: Mapping[str, Any] | None = None
    clip: float | None = None
    loss: Callable[..., Any] = F.cross_entropy
    metrics: Sequence[str | Metric] = ()
    monitor: str | None = None
    patience: int | None = None
    validate_every: int | None = None
    checkpoint_every: int = 100
    log_every: int = 10
    bucket: bool = True
    pad_id: int = 0
    dropout: bool = False
    autocast: torch.dtype | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"steps={self.steps}, epochs={self.epochs}: one of them says how long the training is"
            )
        for name in ("steps", "epochs", "micro_batch", "patience", "validate_every"):
            if getattr(self, name) is not None:
                whole(**{name: getattr(self, name)})
        whole(batch_size=self.batch_size, checkpoint_every=self.checkpoint_every, log_every=self.log_every)
        whole(0, pad_id=self.pad_id)
        if not callable(self.optimizer):
            raise ValueError(f"optimizer={self.optimizer!r}: a class is needed, such as torch.optim.AdamW")
        number(lr=self.lr)
        check_warmup(self.warmup)
        if self.clip is not None:
            number(above=True, clip=self.clip)
        by_name("settings", options=self.options or {})
        flag(bucket=self.bucket, dropout=self.dropout)
        seed_number(self.seed)
        known = ["loss", *resolve_metrics(self.metrics)]
        if self.monitor is not None and self.monitor not in known:
            raise ValueError(f"monitor={self.monitor!r}: allowed are {', '.join(map(repr, known))}")

    @property
    def watched(self) -> str:
        """What says which state is the best: the metric named, the first one, or the loss."""
        first = next(iter(resolve_metrics(self.metrics)), "loss")
        return first if self.monitor is None else self.monitor

    def as_json(self) -> dict[str, Any]:
        """Everything that the outcome depends on, as JSON can say it."""
        plain = {
            name: getattr(self, name)
            for name in (
                *("steps", "epochs", "batch_size", "micro_batch", "lr", "warmup", "clip", "patience"),
                *("validate_every", "bucket", "pad_id", "dropout", "seed"),
            )
        }
        options = self.options or {}
        custom = self.schedule is not None and not isinstance(self.schedule, str)
        return {
            **plain,
            "optimizer": getattr(self.optimizer, "__name__", type(self.optimizer).__name__),
            "options": {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()},
            "schedule": "custom" if custom else self.schedule,
            "loss": of_loss(self.loss),
            "metrics": list(resolve_metrics(self.metrics)),
            "monitor": self.watched,
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
        }

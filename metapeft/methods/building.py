"""What every recipe comes down to: attach a format and build a learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from metapeft.inner.solver import Solver
from metapeft.learner import Learner
from metapeft.updates.attached import attach
from metapeft.updates.format import Format

_ATTACH = ("preprocess", "classifier")
Formats = Format | Mapping[str | type[nn.Module], Format | None]


def learns_rates(inner: Solver) -> bool:
    """Whether an inner solver has learnable rates."""
    return bool(inner.rates({"x": torch.zeros(1)}))


def recipe(
    backbone: nn.Module,
    format: Formats,
    name: str,
    *,
    targets: Any = "all",
    norm: str = "running",
    **options: Any,
) -> Learner:
    """Attach a format and build a learner: what every recipe comes down to."""
    given = {key: options.pop(key) for key in _ATTACH if key in options}
    return Learner(attach(backbone, format, targets=targets, norm=norm, **given), name=name, **options)

"""What every recipe comes down to: attach a format and build a learner."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from metapeft.inner.solver import Solver
from metapeft.learner import Learner
from metapeft.updates.attaching import attach
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
    """Attach a format and build a learner: what every recipe comes down to.

    Raises:
        ValueError: an option that neither takes.

    Example:
        >>> recipe(nn.Linear(4, 3), {}, "own", gead="ridge")
        Traceback (most recent call last):
        ...
        ValueError: own has no option 'gead'; did you mean 'head'?
    """
    known = [*list(inspect.signature(Learner).parameters)[1:], *_ATTACH, "targets", "norm"]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": beside its own it has {', '.join(known)}"
            raise ValueError(f"{name} has no option {option!r}{hint}")
    given = {key: options.pop(key) for key in _ATTACH if key in options}
    return Learner(attach(backbone, format, targets=targets, norm=norm, **given), name=name, **options)

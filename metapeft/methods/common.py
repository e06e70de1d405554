"""What every recipe comes down to: attach a format and build a learner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from metapeft.base.suggestions import did_you_mean
from metapeft.generators.generator import Generator
from metapeft.generators.mapping_net import MappingNet
from metapeft.inner.solver import Solver
from metapeft.learner.learner import Learner
from metapeft.updates.attach_model import attach
from metapeft.updates.formats.format import Format
from metapeft.updates.targets import Targets

_ATTACH = ("preprocess", "classifier", "output")
Formats = Format | Mapping[str | type[nn.Module], Format | None]


def learns_rates(inner: Solver) -> bool:
    """Whether an inner solver has learnable rates."""
    return bool(inner.rates({"x": torch.zeros(1)}))


def solver(options: Mapping[str, Any], make: Callable[..., Solver], **given: Any) -> Any:
    """`inner=` of the options, or the recipe's own: `make` with those of its settings that are not None.

    Raises:
        ValueError: `inner=` beside a setting of it.

    Example:
        >>> from metapeft.inner import SGD
        >>> solver({"inner": SGD(1, 0.1)}, SGD, steps=3)
        Traceback (most recent call last):
        ...
        ValueError: steps=3 has no effect beside inner=SGD(steps=1, lr=0.1, ...): say it there
    """
    said = {name: value for name, value in given.items() if value is not None}
    if "inner" not in options:
        return make(**said)
    for name, value in said.items():
        raise ValueError(f"{name}={value!r} has no effect beside inner={options['inner']!r}: say it there")
    return options["inner"]


def mapping_net(generator: str | Generator | None, **given: Any) -> str | Generator | None:
    """`generator=`, or for `"default"` a `MappingNet` with those settings that are not None.

    Raises:
        ValueError: a setting of it beside a generator of one's own, or beside None.

    Example:
        >>> mapping_net("default", hidden=8).hidden
        8
    """
    said = {name: value for name, value in given.items() if value is not None}
    if isinstance(generator, str) and generator == "default":
        return MappingNet(**said)
    for name, value in said.items():
        raise ValueError(f"{name}={value!r} has no effect beside generator={generator!r}: say it there")
    return generator


def recipe(
    backbone: nn.Module,
    format: Formats,
    name: str,
    /,
    *,
    targets: Targets = "all",
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
            hint = did_you_mean(option, known) or f": beside its own it has {', '.join(known)}"
            raise ValueError(f"{name} has no option {option!r}{hint}")
    given = {key: options.pop(key) for key in _ATTACH if key in options}
    return Learner(attach(backbone, format, targets=targets, norm=norm, **given), name=name, **options)

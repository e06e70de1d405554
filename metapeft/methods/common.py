"""What every recipe comes down to: attach a format and build a learner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metapeft.base.suggestions import did_you_mean
from metapeft.generators.class_encoder import ClassEncoder
from metapeft.generators.generator import Generator
from metapeft.generators.mapping_net import MappingNet
from metapeft.generators.pair_encoder import PairEncoder
from metapeft.inner.solver import Solver
from metapeft.learner.learner import Learner
from metapeft.updates.attach_model import attach
from metapeft.updates.formats.format import Format
from metapeft.updates.leaf import leaf_modules
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


#: losses whose targets are numbers
_REGRESSION = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)


def encoder(
    backbone: nn.Module,
    generator: str | Generator | None,
    loss: Any,
    shots: int | None,
    **given: Any,
) -> str | Generator | None:
    """`generator=`, or for `"default"` that of `default_encoder`.

    Args:
        backbone: whose sizes are read. generator: as a recipe was given it. loss: of the learner. shots: K; None for
            several, or not known. given: settings of the encoder that are not None.

    Raises:
        ValueError: a setting of it beside a generator of one's own, or beside None.

    Example:
        >>> encoder(nn.Linear(2, 1), "default", F.mse_loss, None, hidden=8)
        PairEncoder(hidden=8, moments=True, bound=None, features='inputs', size=2, outputs=1, train_features=False)
    """
    if not isinstance(generator, str) or generator != "default":
        return mapping_net(generator, **given)
    return default_encoder(backbone, loss, shots, **given)


def default_encoder(backbone: nn.Module, loss: Any, shots: int | None, **given: Any) -> Generator:
    """The encoder that fits what a support set can say.

    `PairEncoder` in regression, of the inputs themselves where the backbone begins with a `Linear`, else of its body's
    features; `MappingNet` at one shot, where no class has a variance inside; else `ClassEncoder`.

    Args:
        backbone: whose sizes are read. loss: of the learner. shots: K; None for several, or not known. given: settings
            of the encoder; those that are None are its own.

    Example:
        >>> [type(default_encoder(nn.Linear(2, 5), F.cross_entropy, shots)).__name__ for shots in (1, 5)]
        ['MappingNet', 'ClassEncoder']
    """
    said = {name: value for name, value in given.items() if value is not None}
    if loss in _REGRESSION:
        layers = [leaf.module for leaf in leaf_modules(backbone)]
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        outputs = linears[-1].out_features if linears else 1
        if layers and isinstance(layers[0], nn.Linear):
            return PairEncoder(size=layers[0].in_features, outputs=outputs, **said)
        return PairEncoder(features=None, size=None, outputs=outputs, **said)
    return MappingNet(**said) if shots == 1 else ClassEncoder(**said)


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

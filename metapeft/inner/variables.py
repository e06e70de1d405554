"""Variables of both levels, name -> tensor: where they start, as constants, as what gradients are taken for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from metapeft.inner.solver import Tensors

Start = Mapping[str, Tensor] | Callable[..., Mapping[str, Tensor]]
_PACKED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NOT_HERE = {"batch": "data= is missing", "step": "only the outer steps of a trainer are numbered"}


def starting_point(w0: Start, u: Tensors, may_be_empty: bool = False) -> Tensors:
    """`w0`, or `w0(u)`, as a dict of floating-point tensors; a start that is no function is a constant."""
    start = w0(u) if callable(w0) else {name: value.detach() for name, value in w0.items()}
    if not isinstance(start, Mapping) or not (start or may_be_empty):
        raise ValueError(f"w0 has to give a non-empty dict of tensors, it gave {type(start).__name__}")
    for name, value in start.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"w0[{name!r}] has to be a floating-point tensor, it is {kind}")
    return dict(start)


def bound_start(w0: Start, known: Mapping[str, Any]) -> Start:
    """`w0` as a function of u alone: what it has a parameter for is bound to it; itself where it has none.

    Args:
        known: name of a parameter -> value; None where there is none.

    Raises:
        ValueError: a parameter without a default, of which nothing is known.

    Example:
        >>> bound_start(lambda u, step: step + 1, {"step": 2, "batch": None})({})
        3
    """
    if isinstance(w0, Mapping):
        return w0
    try:
        _, *parameters = inspect.signature(w0).parameters.values()
    except ValueError:  # of what is not written in Python, or takes no u
        return w0
    asked = {one.name: one for one in parameters if one.name in known and one.kind not in _PACKED}
    for name, one in asked.items():
        if known[name] is None and one.default is one.empty:
            raise ValueError(f"w0 asks for {name!r}: {_NOT_HERE[name]}")
    given = {name: known[name] for name in asked if known[name] is not None}
    return functools.partial(w0, **given) if given else w0


def constants(w: Mapping[str, Tensor]) -> Tensors:
    """The same values, through which no gradient runs."""
    return {name: value.detach() for name, value in w.items()}


def leaf_tensors(w: Mapping[str, Tensor]) -> Tensors:
    """The same values as leaf tensors that ask for gradients."""
    return {name: value.detach().requires_grad_() for name, value in w.items()}


def distinct(w: Mapping[str, Tensor]) -> Tensors:
    """The same values as tensors of their own, so that the gradient for one never runs through another.

    A start that is an outer variable, or is computed from another start, would otherwise leak into the
    partial inner gradient. What does not depend on an outer variable becomes a leaf tensor.

    Example:
        >>> import torch
        >>> a = torch.tensor(3.0, requires_grad=True)
        >>> w = distinct({"a": a, "b": 2 * a})
        >>> torch.autograd.grad(w["a"] * w["b"], w["a"])  # d(a b)/da at fixed b, not d(2 a^2)/da
        (tensor(6.),)
    """
    return {
        name: value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        for name, value in w.items()
    }

"""Outer variables that are kept in a set: by a projection after each outer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

Projections = Mapping[str, Callable[[Tensor], Tensor]]


def check_projections(projections: object) -> None:
    """Raise ValueError for what is no dict of functions.

    Example:
        >>> check_projections({"c": 3})
        Traceback (most recent call last):
        ValueError: projections['c']=3: a function of a tensor is needed, such as mp.inner.Simplex()
    """
    if not isinstance(projections, Mapping):
        raise ValueError(
            f"projections is of type {type(projections).__name__}: a dict, pattern -> function, is needed"
        )
    for pattern, function in projections.items():
        if not callable(function) or isinstance(function, type):
            raise ValueError(
                f"projections[{pattern!r}]={function!r}: a function of a tensor is needed, such as mp.inner.Simplex()"
            )


def named_by(projections: Projections, names: Mapping[str, Tensor]) -> Projections:
    """Name of an outer variable -> its projection: of the pattern that is its name, or the first that fits it.

    Raises:
        ValueError: a pattern that names nothing.

    Example:
        >>> sorted(named_by({"a.*": abs}, {"a.x": torch.zeros(1), "b.x": torch.zeros(1)}))
        ['a.x']
    """
    found = {}
    for name in names:
        fitting = [pattern for pattern in projections if fnmatchcase(name, pattern)]
        chosen = name if name in projections else next(iter(fitting), None)
        if chosen is not None:
            found[name] = projections[chosen]
    for pattern in projections:
        if pattern not in names and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"projections names {pattern!r}, which is no outer variable that is trained: there are "
                f"{', '.join(list(names)[:4])}{', ...' if len(names) > 4 else ''}"
            )
    return found


@torch.no_grad()
def project(variables: Mapping[str, Tensor], projections: Projections) -> None:
    """Put each variable in its set, in place.

    Raises:
        ValueError: a projection that gives another shape, or numbers that are not finite.

    Example:
        >>> c = torch.tensor([-1.0, 2.0])
        >>> project({"c": c}, {"c": lambda value: value.clamp(min=0)})
        >>> c
        tensor([0., 2.])
    """
    for name, function in projections.items():
        value = variables[name]
        found = function(value.detach().clone())
        if not isinstance(found, Tensor) or found.shape != value.shape:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the projection of {name!r} gave {what}: it has to give {tuple(value.shape)}")
        if not bool(found.isfinite().all()):
            raise ValueError(f"the projection of {name!r} gave numbers that are not finite")
        value.copy_(found)

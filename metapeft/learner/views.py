"""Learners that share all tensors with another one and differ in one choice."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from metapeft.base.machine.precision import check_autocast
from metapeft.hypergradients.problem import resolve
from metapeft.learner.checks import check_engine
from metapeft.learner.roles import Roles

Own = TypeVar("Own", bound=Roles)


def with_engine(roles: Own, method: Any) -> Own:
    """The same with another hypergradient; raises ValueError for one that cannot reach what is trained."""
    view = copy.copy(roles)
    view.method, view.engine = method, resolve(method)
    check_engine(view)
    return view


def with_autocast(roles: Own, autocast: torch.dtype | None) -> Own:
    """The same with its forwards in another type; raises ValueError for one that the weights do not go with."""
    check_autocast(autocast, roles.like)
    view = copy.copy(roles)
    view.autocast = autocast
    return view


def without_inner(roles: Own) -> Own:
    """The same without its inner loop, and without what only that reads."""
    view = copy.copy(roles)
    view.inner, view.test_steps, view.method, view.engine = None, None, "direct", resolve("direct")
    view.adapted, view.fixed_layers = [], {}
    view.outer = tuple(group for group in roles.outer if group != "rates")
    view.trained = {n: value for n, value in roles.trained.items() if not n.startswith("rates.")}
    view.only_derived = {n for n in roles.only_derived if not n.startswith("head.")}
    return view

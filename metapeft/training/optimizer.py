"""The optimiser of the outer variables and the schedule of its rate, both of them torch's."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import number

SCHEDULES = ("cosine", "linear")


def resolve_schedule(
    schedule: str | Callable[[torch.optim.Optimizer, int], Any] | None,
    optimizer: torch.optim.Optimizer,
    steps: int,
    warmup: float = 0.0,
) -> Any:
    """The scheduler that `schedule` stands for: None, a name, or what a function `(optimizer, steps)` gives.

    Args:
        schedule: `"cosine"` or `"linear"`: the rate falls to 0 over the steps, as half a cosine or evenly.
        warmup: share of the steps in which it first rises from 0; not with a function of one's own.

    Raises:
        ValueError: any other string, or a scheduler that does not count steps; a warm-up beside one.
    """
    if callable(schedule):
        if warmup:
            raise ValueError(
                f"warmup={warmup} has no effect beside schedule=, a function: let it warm up itself"
            )
        made = schedule(optimizer, steps)
        if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError(
                "schedule gives a ReduceLROnPlateau, which wants a validation score at every step: take one that "
                "counts steps, such as CosineAnnealingLR"
            )
        return made
    if schedule not in (None, *SCHEDULES):
        raise ValueError(
            f'schedule={schedule!r}: allowed are None, "cosine", "linear", or a function (optimizer, steps)  -> '
            "scheduler"
        )
    if schedule == "cosine" and not warmup:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if schedule is None and not warmup:
        return None
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, functools.partial(share_of_rate, schedule, steps, warmup)
    )


def share_of_rate(schedule: str | None, steps: int, warmup: float, step: int) -> float:
    """The share of the full rate at a step, from 0.

    Example:
        >>> [round(share_of_rate("linear", 4, 0.25, step), 2) for step in range(5)]
        [0.0, 1.0, 0.67, 0.33, 0.0]
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return step / rising
    gone = min(1.0, (step - rising) / max(1, steps - rising))
    falls = {None: 1.0, "linear": 1.0 - gone, "cosine": 0.5 * (1.0 + math.cos(math.pi * gone))}
    return falls[schedule]


def check_warmup(warmup: object) -> None:
    """Raise ValueError for what is no share of the steps.

    Example:
        >>> check_warmup(100)
        Traceback (most recent call last):
        ValueError: warmup=100: allowed is a finite number of at least 0 and below 1, a share of the steps
    """
    number(0, 1, more="a share of the steps", warmup=warmup)


def parameter_groups(trained: Mapping[str, Tensor], lr: float | Mapping[str, float]) -> list[dict[str, Any]]:
    """One parameter group a rate, in the order of the outer variables.

    Args:
        lr: of all, or `{outer group: rate}` by the first part of the variables' names; `"default"` for the rest.

    Raises:
        ValueError: a rate that is no number of at least 0, an outer group that is not trained, a variable without a
            rate.

    Example:
        >>> trained = {"weights.w": torch.zeros(1), "rates.r": torch.ones(1)}
        >>> parameter_groups(trained, {"rates": 0.1, "default": 1.0})
        [{'params': [tensor([0.])], 'lr': 1.0}, {'params': [tensor([1.])], 'lr': 0.1}]
    """
    rates = dict(lr) if isinstance(lr, Mapping) else {"default": lr}
    outer_groups = {name: name.partition(".")[0] for name in trained}
    for named, rate in rates.items():
        number(lr=rate)
        if named != "default" and named not in outer_groups.values():
            known = sorted(set(outer_groups.values()))
            raise ValueError(f"lr names the group {named!r}, which is not trained: trained are {known}")
    by_rate: dict[str, list[Tensor]] = {}
    for name, outer_group in outer_groups.items():
        named = outer_group if outer_group in rates else "default"
        if named not in rates:
            raise ValueError(f'lr has no rate for {name!r}: add {outer_group!r} or "default"')
        by_rate.setdefault(named, []).append(trained[name])
    return [{"params": values, "lr": rates[named]} for named, values in by_rate.items()]


def made_optimizer(
    optimizer: Callable[..., Any], trained: Mapping[str, Tensor], lr: Any, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The optimiser of the outer variables.

    Raises:
        ValueError: what `parameter_groups` refuses, options that it does not take, what is no optimiser, and one that
            wants to evaluate the objective itself.
    """
    groups = parameter_groups(trained, lr)
    try:
        made = optimizer(groups, **options)
    except TypeError as error:
        raise ValueError(f"options={dict(options)!r}: {error}") from error
    _refuse_optimizer(made)
    found: torch.optim.Optimizer = made
    return found


def _refuse_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer makes a {type(optimizer).__name__}: a class of torch.optim is needed")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"optimizer={type(optimizer).__name__} evaluates its objective several times a step: take one "
            "that steps once a gradient, such as torch.optim.Adam"
        )

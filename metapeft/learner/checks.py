"""Learners that cannot be: what `Learner` refuses, each with the reason."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from metapeft.base.arguments import flag, floating, seed_number, whole
from metapeft.base.machine.devices import usable
from metapeft.hypergradients.direct import Direct
from metapeft.hypergradients.problem import Engine, unreachable
from metapeft.hypergradients.reptile import Reptile
from metapeft.learner.dropout_masks import check_dropout
from metapeft.updates.attached import check_model
from metapeft.updates.formats.full import Full

if TYPE_CHECKING:
    from metapeft.learner.learner import Learner

_log = logging.getLogger(__name__)


def check_arguments(
    model: object,
    inner_data: str,
    test_steps: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    dropout: bool,
    seed: int,
) -> torch.device | None:
    """Raise ValueError for arguments that fit no learner; returns the device that is meant, see `placement.usable`."""
    if inner_data not in ("support", "both"):
        raise ValueError(f"inner_data={inner_data!r}: allowed are 'support' and 'both'")
    check_model(model)
    floating(dtype)
    seed_number(seed)
    flag(dropout=dropout)
    whole(0, test_steps=0 if test_steps is None else test_steps)
    return None if device is None else usable(device)


def check_batch(batch: object) -> None:
    """Raise ValueError for what has not the fields of an `EpisodeBatch`.

    Example:
        >>> check_batch(3)
        Traceback (most recent call last):
        ValueError: batch is of type int: an mp.EpisodeBatch is needed, such as EpisodeSampler(...).batch(0, 4)
    """
    if not hasattr(batch, "support_x"):
        raise ValueError(
            f"batch is of type {type(batch).__name__}: an mp.EpisodeBatch is needed, such as "
            "EpisodeSampler(...).batch(0, 4)"
        )


def check_parts(learner: Learner) -> None:
    """Raise ValueError for parts that do not go together or would have no effect."""
    inner, head = learner.inner, learner.head_name
    if inner is None:
        if learner.adapt_patterns != "all":
            raise ValueError(
                f"adapt={learner.adapt_patterns!r} has no effect: this learner has no inner solver"
            )
        if learner.test_steps is not None:
            raise ValueError(
                f"test_steps={learner.test_steps} has no effect: this learner has no inner solver"
            )
        if head == "zero":
            raise ValueError(
                'head="zero" without an inner solver stays 0: inner= is missing, or take "prototypes"'
            )
    else:
        if inner.reads != "gradients":
            raise ValueError(
                f"inner={inner!r} works without inner gradients and sees no support set here: a Learner "
                'wants a solver of gradient steps; a head in closed form is head="ridge" or "prototypes"'
            )
        if not learner.adapted and not learner.adapts_head:
            raise ValueError(
                "inner= has nothing to move: no factor is adapted and the head is not an inner one"
            )
    if not learner.head.differentiable and (learner.outer or inner is not None):
        raise ValueError(
            f'head="{head}" has no gradients and is for evaluation only: outer=() and inner=None here, train and '
            "adapt with another"
        )
    check_dropout(learner.dropout, learner.model.module, learner.outer, learner.seed)
    if learner.generator is not None and not learner.seeds:
        raise ValueError("generator= has no seed to write: use a format with one, CP or TensorRing")
    clash = [name for name in learner.adapted if name in learner.seeds]
    if learner.per_input and clash:
        raise ValueError(
            f'{clash[0]} is generated per input, the inner solver cannot move it: adapt=["*.A", "*.B"]'
        )


def check_engine(learner: Learner) -> None:
    """Raise ValueError for an engine without the loop it is about, or that cannot reach an outer group."""
    engine, inner, said = learner.engine, learner.inner, learner.method
    if inner is None and isinstance(engine, Engine) and engine.needs_inner:
        raise ValueError(
            f'hypergradient={said!r} without an inner solver: it is "direct", or inner= is missing'
        )
    if inner is not None and isinstance(engine, Direct):
        raise ValueError(f'hypergradient="direct" has no inner loop: leave out inner={inner!r}')
    lost = unreachable(engine, inner)
    for group, kind in (("factors", "starts"), ("generator", "starts"), ("rates", "rates")):
        if group in learner.outer and kind in lost and (kind == "rates" or adapts_start(learner, group)):
            raise ValueError(f'outer has "{group}", which hypergradient={said!r} cannot reach: {lost[kind]}')
    if isinstance(engine, Reptile):
        _check_reptile(learner)


def _check_reptile(learner: Learner) -> None:
    """Reptile moves what the inner solver starts from, and nothing else."""
    for group in learner.outer:
        if group not in ("weights", "factors"):
            raise ValueError(
                f'outer has "{group}", which hypergradient={learner.method!r} cannot reach: Reptile moves '
                "the starts of what is adapted (factors, or weights under Full updates)"
            )
    started = {f"factors.{name}" for name in learner.adapted} | set(full_weights(learner).values())
    still = [name for name in learner.trained if name not in started]
    if still:
        raise ValueError(
            f"hypergradient={learner.method!r} cannot reach {still[0]!r}: Reptile moves only what is "
            'adapted; freeze it (requires_grad=False), or take "weights" with Full updates on all of them'
        )


def full_weights(learner: Learner) -> dict[str, str]:
    """Adapted Full updates and the outer weight that each is added to: `<p>.delta` -> `weights.<p>`."""
    sites = {
        f"{name}.delta": f"weights.{name}"
        for name, s in learner.model.sites.items()
        if isinstance(s.format, Full)
    }
    return {
        name: weight
        for name, weight in sites.items()
        if name in learner.adapted and weight in learner.trained
    }


def adapts_start(learner: Learner, group: str) -> bool:
    """Whether a factor that the group gives the start of is adapted."""
    names = learner.factor_names if group == "factors" else list(learner.seeds)
    return any(name in learner.adapted for name in names)


def note_few_steps(learner: Learner) -> None:
    """Say in the log that fewer than 3 steps from a zero head and `B = 0` leave factors where they start."""
    low_rank = {name for name, site in learner.model.sites.items() if not site.format.dense}
    moved = [name for name in learner.adapted if name.rpartition(".")[0] in low_rank]
    if learner.inner is not None and learner.head_name == "zero" and moved and learner.inner.steps < 3:
        _log.warning(
            "%s: %d inner step(s) from a zero head and B = 0: the first step moves only the head, the second "
            "also B, the third also A; take 3 or more, or head='prototype-init'",
            learner.name,
            learner.inner.steps,
        )

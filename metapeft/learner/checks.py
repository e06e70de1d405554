"""Learners that cannot be: what `Learner` refuses, each with the reason."""

from __future__ import annotations

import logging

import torch

from metapeft.base.arguments import flag, floating, seed_number, whole
from metapeft.base.machine.devices import usable
from metapeft.base.machine.precision import check_autocast
from metapeft.episodes.episode import EpisodeBatch
from metapeft.hypergradients.direct import Direct
from metapeft.hypergradients.problem import Engine, unreachable
from metapeft.hypergradients.reptile import Reptile
from metapeft.learner.dropout_masks import check_dropout
from metapeft.learner.roles import Roles
from metapeft.updates.attached import check_model

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
    """Raise ValueError for arguments that fit no learner; returns the device that is meant, see `devices.usable`."""
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


def check_shown(roles: Roles, batch: EpisodeBatch, shown: EpisodeBatch) -> None:
    """Raise ValueError for episodes that cannot be shown to the generator in place of a batch's own."""
    if roles.generator is None or roles.per_input:
        raise ValueError("shown= has no effect: this learner has no generator that reads support sets")
    check_batch(shown)
    if len(shown) != len(batch) or shown.ways != batch.ways:
        raise ValueError(
            f"shown= has {len(shown)} episodes of {shown.ways} ways, the batch {len(batch)} of {batch.ways}: "
            "one for each"
        )


def check(roles: Roles) -> None:
    """Raise ValueError for a learner that cannot be; say in the log what is allowed and of little use."""
    check_autocast(roles.autocast, roles.like)
    check_parts(roles)
    check_engine(roles)
    note_few_steps(roles)


def check_parts(roles: Roles) -> None:
    """Raise ValueError for parts that do not go together or would have no effect."""
    inner, head = roles.inner, roles.head_name
    if inner is None:
        if roles.adapt_patterns != "all":
            raise ValueError(
                f"adapt={roles.adapt_patterns!r} has no effect: this learner has no inner solver"
            )
        if roles.test_steps is not None:
            raise ValueError(f"test_steps={roles.test_steps} has no effect: this learner has no inner solver")
        if roles.inner_loss is not None:
            raise ValueError(
                f"inner_loss={roles.inner_loss!r} has no effect: this learner has no inner solver"
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
        if not roles.adapted and not roles.adapts_head:
            raise ValueError(
                "inner= has nothing to move: no factor is adapted and the head is not an inner one"
            )
    if not roles.head.differentiable and (roles.outer or inner is not None):
        raise ValueError(
            f'head="{head}" has no gradients and is for evaluation only: outer=() and inner=None here, train and '
            "adapt with another"
        )
    if roles.batch_loss is not None and not callable(roles.batch_loss):
        raise ValueError(
            f"batch_loss={roles.batch_loss!r} has to be a function (outputs, targets, mask) -> ()"
        )
    check_dropout(roles.dropout, roles.model.module, roles.outer, roles.seed)
    if roles.generator is not None and not roles.seeds:
        raise ValueError(
            "generator= has no seed, shift or gate to write: use a format with one, CP or TensorRing"
        )
    clash = [name for name in roles.adapted if name in roles.seeds]
    if roles.per_input and clash:
        raise ValueError(
            f'{clash[0]} is generated per input, the inner solver cannot move it: adapt=["*.A", "*.B"]'
        )


def check_engine(roles: Roles) -> None:
    """Raise ValueError for an engine without the loop it is about, or that cannot reach an outer group."""
    engine, inner, said = roles.engine, roles.inner, roles.method
    if inner is None and isinstance(engine, Engine) and engine.needs_inner:
        raise ValueError(
            f'hypergradient={said!r} without an inner solver: it is "direct", or inner= is missing'
        )
    if inner is not None and isinstance(engine, Direct):
        raise ValueError(f'hypergradient="direct" has no inner loop: leave out inner={inner!r}')
    lost = unreachable(engine, inner)
    for group, kind in (("factors", "starts"), ("generator", "starts"), ("rates", "rates")):
        if group in roles.outer and kind in lost and (kind == "rates" or roles.adapts_start(group)):
            raise ValueError(f'outer has "{group}", which hypergradient={said!r} cannot reach: {lost[kind]}')
    if isinstance(engine, Reptile):
        _check_reptile(roles)


def _check_reptile(roles: Roles) -> None:
    """Reptile moves what the inner solver starts from, and nothing else."""
    for group in roles.outer:
        if group not in ("weights", "factors"):
            raise ValueError(
                f'outer has "{group}", which hypergradient={roles.method!r} cannot reach: Reptile moves '
                "the starts of what is adapted (factors, or weights under Full updates)"
            )
    started = {f"factors.{name}" for name in roles.adapted} | set(roles.full_weights.values())
    still = [name for name in roles.trained if name not in started]
    if still:
        raise ValueError(
            f"hypergradient={roles.method!r} cannot reach {still[0]!r}: Reptile moves only what is "
            'adapted; freeze it (requires_grad=False), or take "weights" with Full updates on all of them'
        )


def note_few_steps(roles: Roles) -> None:
    """Say in the log that fewer than 3 steps from a zero head and `B = 0` leave factors where they start."""
    low_rank = {name for name, site in roles.model.sites.items() if not site.format.dense}
    moved = [name for name in roles.adapted if name.rpartition(".")[0] in low_rank]
    if roles.inner is not None and roles.head_name == "zero" and moved and roles.inner.steps < 3:
        _log.warning(
            "%s: %d inner step(s) from a zero head and B = 0: the first step moves only the head, the second "
            "also B, the third also A; take 3 or more, or head='prototype-init'",
            roles.name,
            roles.inner.steps,
        )

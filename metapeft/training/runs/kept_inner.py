"""Inner variables that are kept between outer steps, in a run's checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metapeft.base.errors import RunError
from metapeft.inner.warm_start import WarmStart

_log = logging.getLogger("metapeft")


def kept(w: Mapping[str, Tensor]) -> WarmStart:
    """What a gradient came with; of a task of the user's own, which keeps no state, the variables alone."""
    return w if isinstance(w, WarmStart) else WarmStart(w)


def stored(inner: WarmStart | None) -> dict[str, Any]:
    """The entries of a checkpoint.

    Example:
        >>> stored(WarmStart({"x": torch.zeros(1)}, {"before": 3}))
        {'inner': {'x': tensor([0.])}, 'inner_state': {'before': 3}}
    """
    return {
        "inner": None if inner is None else dict(inner),
        "inner_state": None if inner is None else inner.state,
    }


def restored(tree: Mapping[str, Any], device: torch.device) -> WarmStart | None:
    """What `stored` said; a checkpoint of before 0.3 has no state."""
    if tree.get("inner") is None:
        return None
    return WarmStart(tree["inner"], tree.get("inner_state")).mapped(lambda value: value.to(device))


def of_best(state: Mapping[str, Tensor], inner: WarmStart | None) -> Mapping[str, Any]:
    """The tree of the best checkpoint: what the task's state is, beside the inner variables where they are kept."""
    return state if inner is None else {"learner": state, **stored(inner)}


def state_of_best(tree: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The task's state in what `of_best` made."""
    found: Mapping[str, Tensor] = tree["learner"] if isinstance(tree.get("learner"), Mapping) else tree
    return found


def refuse_missing(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise RunError for a checkpoint's state without a tensor of the task, which would begin anew."""
    if missing := sorted(set(own) - set(state)):
        raise RunError(
            f"the checkpoint lacks {missing[0]!r}, which would begin anew: it was changed, or is of another method or "
            "version"
        )


def note_fresh(before: WarmStart | None, after: WarmStart) -> None:
    """Say where a solver that has a state began anew, for inner variables from a checkpoint that has none."""
    if before is not None and before.state is None and after.state:
        _log.warning(
            "this run's checkpoint has no state of the inner solver (it was written before 0.3): the solver began "
            "anew once, and goes on from its own state now"
        )

"""Weights of a backbone that its forward does not use, such as BERT's pooler behind a head of one's own."""

from __future__ import annotations

import logging

from metapeft.learner.roles import Roles, Tensors

_log = logging.getLogger("metapeft")


def may_be_idle(roles: Roles) -> frozenset[str]:
    """The backbone's own parameters among what is trained: its forward need not read all of them."""
    return frozenset(name for name in roles.trained if name.startswith("weights."))


def note_idle(roles: Roles, grads: Tensors) -> None:
    """Say, once each, which weights no loss reaches; ValueError where that is all of them.

    Args:
        roles: of the learner, whose `idle` are those that were said. grads: of a batch.
    """
    allowed = may_be_idle(roles)
    idle = [name for name in allowed if name not in grads]
    if idle and len(idle) == len(allowed):
        raise ValueError(
            f'no loss reaches any of the {len(idle)} outer variables of the group "weights", such as {min(idle)!r}: '
            "take it out of outer"
        )
    fresh = sorted(set(idle) - roles.idle)
    if not fresh:
        return
    roles.idle.update(fresh)
    names = ", ".join(name.removeprefix("weights.") for name in fresh[:5])
    more = f" and {len(fresh) - 5} more" if len(fresh) > 5 else ""
    _log.warning("%s: no loss reaches %s%s, which therefore stay as they are", roles.name, names, more)

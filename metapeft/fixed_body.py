"""Learners whose inner steps move no more than the last layer: what goes before it stays as it is, and runs once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from metapeft.updates import registry
from metapeft.updates.attached import AttachedModel

if TYPE_CHECKING:
    from metapeft.learner import Learner


def is_fixed(learner: Learner) -> bool:
    """Whether inner steps leave all features as they are.

    They do where a head in the classifier's place is all that is adapted, or the classifier's own updates are. Seeds
    per input, and selections of the user's own, which may couple layers, are taken for what moves more.
    """
    own_selection = learner.selection is not None and not registry.made(learner.selection)
    if learner.inner is None or learner.per_input or own_selection:
        return False
    if learner.head_name != "learned":
        return learner.adapts_head and not learner.adapted
    return _only_classifier(learner.model, learner.adapted)


def acts_behind(learner: Learner, name: str) -> bool:
    """Whether an outer variable acts on more than features: a rate, or one of the backbone's own classifier.

    Args:
        name: with its group, `weights.<p>`; or `seed.<factor>`.
    """
    group, _, rest = name.partition(".")
    own = learner.head_name == "learned" and rest.startswith(f"{learner.model.classifier}.")
    return group == "rates" or own


def _only_classifier(model: AttachedModel, adapted: Sequence[str]) -> bool:
    """Whether factors are adapted, all of them the classifier's, which shares no parameter with another layer."""
    layer = model.classifier
    if not adapted or not layer or not model.classifier_is_certain:
        return False
    owners: dict[int, set[str]] = {}
    for name, value in model.parameters.items():
        owners.setdefault(id(value), set()).add(name.rpartition(".")[0])
    shared = any(layer in found and len(found) > 1 for found in owners.values())
    return not shared and all(name.startswith(f"{layer}.") for name in adapted)

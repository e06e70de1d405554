"""The methods that the main job can compare, with their ablations and controls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from metapeft.base.suggestions import did_you_mean
from metapeft.learner.learner import Learner
from metapeft.methods import recipes
from metapeft.updates.formats.cp import CP
from metapeft.updates.formats.ranking import ranks


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        make: recipe. about: one line. trains: whether it is meta-trained from the common start; else it gets the
            continued retraining. options: of the recipe. adapts: whether it has inner steps to
            choose. adapts_head: whether they move the head too, from a nearest-centroid one; else that is in closed
            form. learns_rates: whether its inner rates, one a tensor and step, are trained.
        control_of: a trained method whose weights it takes, only evaluated otherwise.
        rule: how the selection variables of `"metapeft"` are rounded to the ranks that it is trained at, anew.
    """

    make: Callable[..., Learner]
    about: str
    trains: bool = True
    adapts: bool = True
    adapts_head: bool = True
    learns_rates: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    control_of: str | None = None
    rule: str | None = None

    @property
    def needs(self) -> str | None:
        """The method that has to be trained before."""
        return self.control_of or ("metapeft" if self.rule is not None else None)


METHODS = {
    "metapeft": Method(
        recipes.metapeft, "CP: generated, selected, adapted; W0, generator, selection and rates trained"
    ),
    "lora-ml": Method(recipes.lora_ml, "LoRA adapted; W0, starts and rates trained through it"),
    "sr+lora": Method(recipes.sr_lora, "continued retraining, then LoRA and head fitted at test", trains=False),
    "metalora-cp": Method(
        recipes.metalora_cp, "W0 frozen, CP factors trained, seeds generated, no inner loop", adapts=False
    ),
    "centroids": Method(
        recipes.centroids, "continued retraining, nearest centroids, nothing adapts", trains=False, adapts=False
    ),
    "metalora-tr": Method(
        recipes.metalora_tr, "W0 frozen, ring factors trained, seeds generated, no inner loop", adapts=False
    ),
    "maml": Method(
        recipes.maml, "full updates adapted, W0 trained", options={"norm": "running"}, learns_rates=False
    ),
    "fomaml": Method(
        recipes.fomaml, "maml with first-order gradients", options={"norm": "running"}, learns_rates=False
    ),
    "anil": Method(recipes.anil, "the head adapted, W0 trained", options={"norm": "running"}, learns_rates=False),
    "boil": Method(
        recipes.boil, "all but the head adapted, nearest centroids, W0 trained",
        options={"norm": "running"}, adapts_head=False, learns_rates=False,
    ),
    "protonet": Method(recipes.protonet, "nothing adapts, W0 trained episodically", adapts=False),
    "generator-off": Method(recipes.metapeft, "metapeft with a constant seed", options={"generator": None}),
    "selection-off": Method(recipes.metapeft, "metapeft without selection variables", options={"selection": None}),
    "inner-off": Method(
        recipes.metalora_cp, "metapeft without inner loop: W0, factors and generator trained", adapts=False,
        options={"outer": ("weights", "factors", "generator")},
    ),
    "other-task": Method(
        recipes.metapeft, "metapeft, its generator fed another task's support set at test", control_of="metapeft"
    ),
    **{
        f"retrained-{rule}": Method(
            recipes.metapeft, f"metapeft trained anew at ranks by the rule {rule!r}, no selection variables",
            options={"selection": None}, rule=rule,
        )
        for rule in ("threshold", "total", "uniform", "shuffled", "random")
    },
}  # fmt: skip


def check_method(name: str, methods: tuple[str, ...]) -> None:
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"methods has {name!r}: known are {known}{did_you_mean(name, METHODS)}")
    needed = METHODS[name].needs
    if needed is not None and needed not in methods:
        raise ValueError(f"methods has {name!r}, which builds on {needed!r}: add that too")


def round_ranks(learner: Learner, rule: str, seed: int = 0) -> dict[str, int]:
    """A learner's selection variables rounded by a rule; budgets are half of all terms."""
    logits = {name: learner.variables[f"selection.{name}"] for name in learner.selected}
    half = sum(len(value) for value in logits.values()) // 2
    options: dict[str, Any] = {"total": half} if rule in ("total", "uniform", "shuffled", "random") else {}
    if rule in ("shuffled", "random"):
        options["seed"] = seed
    return ranks(logits, rule, **options)


def rank_option(method: Method, rank: int) -> dict[str, Any]:
    if method.make is recipes.metapeft:
        return {"format": CP(rank)}
    if method.make in (recipes.lora_ml, recipes.sr_lora, recipes.metalora_cp):
        return {"rank": rank}
    if method.make is recipes.metalora_tr:
        return {"rank": max(1, math.isqrt(rank))}  # as many parameters as CP of rank^2
    return {}

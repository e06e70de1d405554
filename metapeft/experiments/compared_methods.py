"""The methods that the main job can compare, with their ablations and controls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from metapeft.base.suggestions import did_you_mean
from metapeft.experiments.config import TrainConfig
from metapeft.generators.control import Blind, Control, OtherTask
from metapeft.learner.learner import Learner
from metapeft.methods import recipes
from metapeft.training.evaluation import Shown
from metapeft.updates.formats.cp import CP
from metapeft.updates.formats.ranking import ranks


def unsized(config: TrainConfig) -> dict[str, Any]:
    """Full updates, or none."""
    return {}


def of_rank(config: TrainConfig) -> dict[str, Any]:
    """The recipe has a format of its own."""
    return {"rank": config.rank, **_on(config)}


def cp_of_rank(config: TrainConfig) -> dict[str, Any]:
    """The recipe takes any format, here CP."""
    return {"format": CP(config.rank, shift=config.modulated, gate=config.modulated), **_on(config)}


def ring_of_rank(config: TrainConfig) -> dict[str, Any]:
    """As many parameters as CP of rank^2.

    Example:
        >>> ring_of_rank(TrainConfig(rank=4))
        {'rank': 2}
    """
    return {"rank": max(1, math.isqrt(config.rank)), **_on(config)}


def _on(config: TrainConfig) -> dict[str, Any]:
    return {} if config.targets is None else {"targets": config.targets}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        make: recipe. about: one line. options: of the recipe. sized: the job's settings -> its format, as options.
        trains: whether it is meta-trained from the common start; else it gets the continued retraining.
        adapts: whether it has inner steps to choose. adapts_head: whether they move the head too, from a
            nearest-centroid one; else that is in closed form.
        learns_rates: whether its inner rates, one a tensor and step, are trained.
        control: what its generator is put into, so that it is shown something else than its task.
        control_of: a trained method whose weights it takes, only evaluated otherwise.
        shown: what the generator is shown at test in place of the task's support set, as `mp.evaluate` takes it.
        ranks_from: a trained method whose selection variables, rounded by `rule`, are the ranks that it is trained
            at, anew.
    """

    make: Callable[..., Learner]
    about: str
    options: dict[str, Any] = field(default_factory=dict)
    sized: Callable[[TrainConfig], dict[str, Any]] = unsized
    trains: bool = True
    adapts: bool = True
    adapts_head: bool = True
    learns_rates: bool = True
    control: type[Control] | None = None
    control_of: str | None = None
    shown: Shown | None = None
    ranks_from: str | None = None
    rule: str = ""

    @property
    def needs(self) -> str | None:
        """The method that has to be trained before."""
        return self.control_of or self.ranks_from


OWN = "metapeft"  # the row that all controls are about
WHOLE = Method(
    recipes.metapeft,
    "CP: generated, selected, adapted; W0, generator, selection and rates trained",
    sized=cp_of_rank,
)
METALORA = Method(
    recipes.metalora_cp,
    "W0 frozen, CP factors trained, seeds generated, no inner loop",
    sized=of_rank,
    adapts=False,
)
CONSTANT = replace(WHOLE, about="metapeft with a constant seed, no generator", options={"generator": None})
RUNNING: dict[str, Any] = {"options": {"norm": "running"}, "learns_rates": False}

METHODS = {
    OWN: WHOLE,
    "lora-ml": Method(recipes.lora_ml, "LoRA adapted; W0, starts and rates trained through it", sized=of_rank),
    "sr+lora": Method(
        recipes.sr_lora, "continued retraining, then LoRA and head fitted at test", sized=of_rank, trains=False
    ),
    "metalora-cp": METALORA,
    "centroids": Method(
        recipes.centroids, "continued retraining, nearest centroids, nothing adapts", trains=False, adapts=False
    ),
    "metalora-tr": replace(
        METALORA, make=recipes.metalora_tr, sized=ring_of_rank,
        about="W0 frozen, ring factors trained, seeds generated, no inner loop",
    ),
    "maml": Method(recipes.maml, "full updates adapted, W0 trained", **RUNNING),
    "fomaml": Method(recipes.fomaml, "maml with first-order gradients", **RUNNING),
    "anil": Method(recipes.anil, "the head adapted, W0 trained", **RUNNING),
    "boil": Method(
        recipes.boil, "all but the head adapted, nearest centroids, W0 trained", adapts_head=False, **RUNNING
    ),
    "protonet": Method(recipes.protonet, "nothing adapts, W0 trained episodically", adapts=False),
    "constant": CONSTANT,
    "generator-off": CONSTANT,  # its name before there were other controls
    "blind": replace(
        WHOLE, about="metapeft, its generator trained and tested on one fixed support set", control=Blind
    ),
    "other-kind": replace(
        WHOLE, about="metapeft, its generator shown a task of another kind at test", control_of=OWN,
        shown="another kind",
    ),
    "selection-off": replace(WHOLE, about="metapeft without selection variables", options={"selection": None}),
    "inner-off": replace(
        METALORA, about="metapeft without inner loop: W0, factors and generator trained",
        options={"outer": ("weights", "factors", "generator")},
    ),
    "other-task": replace(
        WHOLE, about="metapeft, its generator fed another task's support set at test", control=OtherTask,
        control_of=OWN,
    ),
    **{
        f"retrained-{rule}": replace(
            WHOLE, about=f"metapeft trained anew at ranks by the rule {rule!r}, no selection variables",
            options={"selection": None}, ranks_from=OWN, rule=rule,
        )
        for rule in ("threshold", "total", "uniform", "shuffled", "random")
    },
}  # fmt: skip


def check_method(name: str, methods: tuple[str, ...]) -> None:
    """Raise ValueError for a method that is not known, or that builds on one which is not among `methods`."""
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

"""The rows of the few-shot tables: method, start, budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from torch import nn

import metapeft as mp
from metapeft.generators.control import OtherTask
from metapeft.learner.learner import Learner
from metapeft.training.tuning import calibrated_scale, grid, tune


@dataclass(frozen=True)
class Setting:
    """One row: how its learner is made, and what it may cost.

    Args:
        about: one line for tables. make: a recipe. options: for it.
        start: `"sr"`, standard retraining; `"sr-continued"`, that continued on as many images as the meta-trained rows
            see after it; `"scratch"`, random weights. inner: grid of (lr, steps) tried on validation classes.
        control: a row that is this one, trained, with its generator fed another task's support set.
        steps, tasks, chunk, lr: of the outer loop. ways, queries: of training episodes where they differ from the test.
        validate_every: outer steps.
    """

    about: str
    make: Callable[..., Learner]
    options: dict[str, Any] = field(default_factory=dict)
    start: Literal["sr", "sr-continued", "scratch"] = "sr"
    control: str | None = None
    rates: Any = None
    inner_lr: tuple[float, ...] = ()
    inner_steps: tuple[int, ...] = ()
    steps: int = 0
    tasks: int = 4
    chunk: int | None = None
    lr: Any = 1e-3
    ways: int | None = None
    queries: int = 5
    validate_every: int = 200

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON can say them."""
        plain = {name: value for name, value in asdict(self).items() if name not in ("make", "options")}
        return {
            **plain,
            "method": self.make.__name__,
            "options": {n: repr(v) for n, v in self.options.items()},
        }


def budget(setting: Setting, data: str) -> Setting:
    """The row as one data set can afford it: a share of its outer steps, validated twice."""
    if SHARE[data] == 1:
        return setting
    steps = round(SHARE[data] * setting.steps)
    return replace(setting, steps=steps, validate_every=max(1, steps // 2))


def build(
    setting: Setting, start: nn.Module, preprocess: Any, validation: Any
) -> tuple[Learner, dict[str, Any]]:
    """The learner of a row; inner rate and steps are the best of its grid on 100 validation episodes.

    From a retrained start, the scale of the nearest-centroid logits is the one with the smallest loss there.
    """
    chosen: dict[str, Any] = {}
    if setting.start != "scratch":
        chosen["scale"] = calibrated_scale(start, validation, preprocess=preprocess)

    def make(lr: float | None = None, steps: int | None = None) -> Learner:
        options = dict(setting.options, preprocess=preprocess)
        if "scale" in chosen:
            head = mp.heads.PrototypeInit if setting.inner_lr else mp.heads.Prototypes
            options["head"] = head(scale=chosen["scale"])
        if lr is not None and steps is not None:
            options["inner"] = mp.inner.SGD(steps, lr, rates=setting.rates)
        return setting.make(start, **options)

    if not setting.inner_lr:
        return make(), chosen
    tuned = tune(make, grid(lr=setting.inner_lr, steps=setting.inner_steps), validation, 100)
    chosen |= {**tuned.settings, "validation": tuned.score, "trials": tuned.trials}
    return make(**tuned.settings), chosen


def controlled(setting: Setting, learner: Learner, start: nn.Module, preprocess: Any) -> Learner:
    """A trained learner with its generator fed another task's support set."""
    if learner.generator is None:
        raise ValueError(f"{setting.about!r} has no generator to control")
    options = dict(
        setting.options, preprocess=preprocess, inner=learner.inner, head=learner.head,
        generator=OtherTask(learner.generator),
    )  # fmt: skip
    control = setting.make(start, **options)
    control.load_state(learner.state())
    return control


RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
STEPS = (3, 5, 10)
OUTER_STEPS, TASKS = 600, 4  # of the meta-trained rows
# Of those steps; an image of miniImageNet costs ten times as much; glyph pairs are a small study.
SHARE = {"omniglot": 1.0, "miniimagenet": 0.25, "glyph-pairs": 0.5}
# The SR start is good, so W0 moves more slowly than what is new.
SLOW = {"weights": 3e-4, "default": 1e-3}
METHODS = mp.methods


def _whole(about: str, options: dict[str, Any] | None = None, control: str | None = None) -> Setting:
    """metapeft, or metapeft with a part switched off."""
    return Setting(
        about, METHODS.metapeft, options or {}, control=control, rates="step", inner_lr=RATES, inner_steps=(5,),
        steps=OUTER_STEPS, lr=SLOW,
    )  # fmt: skip


ROWS = {
    "start": Setting("SR start as it is, nearest centroids", METHODS.centroids),
    "centroids": Setting("SR continued, nearest centroids, nothing adapts", METHODS.centroids, start="sr-continued"),
    "sr+lora": Setting(
        "SR continued, LoRA and head fitted at test", METHODS.sr_lora, start="sr-continued", inner_lr=RATES,
        inner_steps=STEPS,
    ),
    "protonet": Setting(
        "prototypical network, 60-way training, from scratch", METHODS.protonet, start="scratch", steps=2400, tasks=1,
        lr=2e-3, ways=60, validate_every=300,
    ),
    "lora-ml": Setting(
        "SR start, W0, starts and rates meta-trained through LoRA", METHODS.lora_ml, rates="step", inner_lr=RATES,
        inner_steps=(5,), steps=OUTER_STEPS, lr=SLOW,
    ),
    "maml": Setting(
        "SR start, running statistics, full updates", METHODS.maml,
        {"norm": "running"}, rates="step", inner_lr=RATES, inner_steps=(5,), steps=OUTER_STEPS,
        lr=SLOW,
    ),
    "maml-scratch": Setting(
        "from scratch, support statistics, full updates", METHODS.maml, {"norm": "support"}, start="scratch",
        inner_lr=(0.4,), inner_steps=(1,), steps=2400, validate_every=400,
    ),
    "maml-scratch-transductive": Setting(
        "from scratch, TRANSDUCTIVE statistics (queries see each other)", METHODS.maml, {"norm": "transductive"},
        start="scratch", inner_lr=(0.4,), inner_steps=(1,), steps=2400, validate_every=400,
    ),
    "metalora-cp": Setting(
        "SR start frozen, CP factors trained, seeds generated", METHODS.metalora_cp, steps=OUTER_STEPS
    ),
    "metalora-tr": Setting(
        "SR start frozen, ring factors trained, seeds generated", METHODS.metalora_tr, steps=OUTER_STEPS
    ),
    "metapeft": _whole("SR start, CP: generated, selected, adapted", control="other-task"),
    "generator-off": _whole("metapeft with a constant seed", {"generator": None}),
    "selection-off": _whole("metapeft without selection variables", {"selection": None}),
    "inner-off": Setting(
        "metapeft without inner loop: W0, factors and generator trained", METHODS.metalora_cp,
        {"outer": ("weights", "factors", "generator")}, steps=OUTER_STEPS, lr=SLOW,
    ),
}  # fmt: skip

"""The rows that stand beside the literature's: problems, methods, how each is trained, and what is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

import metapeft as mp


@dataclass(frozen=True)
class Problem:
    """N-way K-shot episodes of a data set, with 15 queries a class.

    Args:
        data: its name. ways, shots: N, K. size, channels: of the images that Conv-4-64 sees. start: the retraining
            that rows stand on (see `benchmarks.starts`). augment: arguments of `mp.Augment` in training.
    """

    data: str
    ways: int
    shots: int
    start: str
    size: int = 28
    channels: int = 1
    augment: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Such as `miniimagenet-5w1s`."""
        return f"{self.data}-{self.ways}w{self.shots}s"

    def backbone(self, seed: int) -> nn.Module:
        """Conv-4-64 with random weights."""
        module: nn.Module = mp.backbones.conv4(
            ways=5, channels=self.channels, width=64, size=self.size, seed=seed
        )
        return module


def problems() -> dict[str, Problem]:
    """All of them by name."""
    colours = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
    mini: dict[str, Any] = {"size": 84, "channels": 3, "augment": {"crop": 8, "flip": True, **colours}}
    found = [Problem("miniimagenet", 5, shots, "mini-sr", **mini) for shots in (1, 5)]
    found += [Problem("omniglot", ways, shots, "omniglot-sr") for ways in (5, 20) for shots in (1, 5)]
    return {problem.name: problem for problem in found}


@dataclass(frozen=True)
class Training:
    """Outer steps on training classes: SGD with Nesterov momentum 0.9, its rate falling to 0 as a cosine.

    Args:
        steps, tasks, lr: of the outer loop. ways, queries: of its episodes; shots are those of the problem.
        decay, ema: of weights, of the moving average. validate_every: in steps; the best state there is kept, among
            them that before the first step where the row has a start.
    """

    steps: int
    lr: float
    ways: int = 20
    queries: int = 15
    tasks: int = 1
    decay: float = 5e-4
    ema: float | None = None
    validate_every: int = 200

    def images(self, shots: int) -> int:
        """Images seen in all steps.

        Example:
            >>> Training(10, 0.1, ways=5, queries=15, tasks=2).images(1)
            1600
        """
        return self.steps * self.tasks * self.ways * (shots + self.queries)


@dataclass(frozen=True)
class Row:
    """One method: how its learner is made, and what it may cost.

    Args:
        about: one line for tables. make: `(backbone, problem, **settings) -> Learner`.
        scratch: from random weights; else from the problem's start.
        grid: settings tried on 100 validation episodes before training. training: by data set; None for none.
        base: the row with the same start and normalisation in which nothing adapts.
        trained_by: a row whose kept learner's weights stand in the place of the start.
    """

    about: str
    make: Callable[..., mp.Learner]
    scratch: bool = False
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    training: dict[str, Training] | None = None
    base: str | None = None
    trained_by: str | None = None

    def as_dict(self, problem: Problem) -> dict[str, Any]:
        """What the outcome depends on, as JSON can say it."""
        training = None if self.training is None else asdict(self.training[problem.data])
        start = "random weights" if self.scratch else self.trained_by or problem.start
        return {"about": self.about, "start": start, "grid": self.grid, "training": training}


def _frozen(body: nn.Module, problem: Problem, *, head: Any, **options: Any) -> mp.Learner:
    """A head in closed form on the start as it is."""
    return mp.methods.centroids(body, head=head, **options)


def _metric(body: nn.Module, problem: Problem, *, head: Any, **options: Any) -> mp.Learner:
    """Features trained through a head in closed form; its scale and penalty with them."""
    return mp.methods.protonet(body, head=head, outer=("weights", "head"), **options)


def _adapted(
    body: nn.Module,
    problem: Problem,
    *,
    recipe: Callable[..., mp.Learner],
    lr: float,
    scale: float,
    **options: Any,
) -> mp.Learner:
    """Five inner steps from class means of features of length one."""
    rates: Literal["step"] | None = None if recipe is mp.methods.sr_lora else "step"
    if recipe is mp.methods.metapeft:
        options["shots"] = problem.shots
    head = mp.heads.PrototypeInit(scale=scale, normalize="l2")
    return recipe(body, head=head, inner=mp.inner.SGD(5, lr, rates=rates), **options)


def _full(
    body: nn.Module,
    problem: Problem,
    *,
    recipe: Callable[..., mp.Learner],
    lr: float,
    steps: int,
    **options: Any,
) -> mp.Learner:
    """MAML and ANIL under the statistics of the support set."""
    return recipe(body, steps=steps, lr=lr, norm="support", **options)


PROTOTYPES, COSINE = mp.heads.Prototypes, partial(mp.heads.Prototypes, metric="cosine")
# Large: from class means the loss on few support images is near 0 at the start, and so is its gradient.
RATES = {"lr": (1.0, 10.0, 100.0, 300.0, 1000.0, 3000.0)}
CLOSE = {"miniimagenet": Training(150, 1e-3, ways=5, queries=10, tasks=4, validate_every=50)}
CLOSE["omniglot"] = Training(300, 1e-3, ways=5, queries=10, tasks=4, validate_every=100)
SCRATCH = {
    "miniimagenet": Training(3000, 0.05, ema=0.999, validate_every=300),
    "omniglot": Training(3000, 0.05, ways=60, queries=5, decay=1e-4, ema=0.999, validate_every=300),
}
TUNED = {
    "miniimagenet": Training(800, 0.01, ema=0.99, validate_every=100),
    "omniglot": Training(800, 0.01, ways=60, queries=5, ema=0.99, validate_every=100),
}
MAML = {
    "miniimagenet": Training(6000, 0.01, ways=5, tasks=4, decay=0.0, validate_every=500),
    "omniglot": Training(6000, 0.05, ways=5, tasks=16, queries=5, decay=0.0, validate_every=500),
}
ROWS = {
    "start": Row("SR start, centroids of its features as they are", partial(_frozen, head=PROTOTYPES())),
    "start-l2": Row("SR start, centroids of features of length one", partial(_frozen, head=PROTOTYPES(normalize="l2"))),
    "simpleshot": Row(
        "SimpleShot: SR start, centroids of features centred and of length one (CL2N)",
        partial(_frozen, head=PROTOTYPES(normalize="center+l2")),
    ),
    "rfs-simple": Row(
        "RFS-simple: SR start, logistic regression on features of length one",
        partial(_frozen, head=mp.heads.Logistic(normalize="l2", penalty=1.0)),
    ),
    "meta-baseline": Row(
        "Meta-Baseline: SR start, cosine to class means with a learned scale, trained on episodes",
        partial(_metric, head=COSINE(scale=10.0)), training=TUNED, base="start-l2",
    ),
    "meta-baseline-cl2n": Row(
        "Meta-Baseline's features, centred and of length one, nearest centroids",
        partial(_frozen, head=PROTOTYPES(normalize="center+l2")), base="simpleshot", trained_by="meta-baseline",
    ),
    "protonet": Row(
        "ProtoNet from scratch, squared Euclidean distance with a learned scale",
        partial(_metric, head=PROTOTYPES(scale=0.01)), scratch=True, training=SCRATCH,
    ),
    "r2d2": Row(
        "R2-D2 from scratch: a ridge regression whose penalty and scale are learned",
        partial(_metric, head=mp.heads.Ridge(penalty=50.0, scale=10.0)), scratch=True, training=SCRATCH,
    ),
    "sr+lora": Row(
        "SR start, LoRA of rank 4 and the head fitted at test", partial(_adapted, recipe=mp.methods.sr_lora),
        grid=RATES, base="start-l2",
    ),
    "lora-ml": Row(
        "LoRA-ML: SR start, W0, starts and rates meta-trained through LoRA of rank 4",
        partial(_adapted, recipe=mp.methods.lora_ml), grid=RATES, training=CLOSE, base="start-l2",
    ),
    "metapeft": Row(
        "metapeft: SR start, CP of rank 4: generated, selected, adapted",
        partial(_adapted, recipe=mp.methods.metapeft), grid=RATES, training=CLOSE, base="start-l2",
    ),
    "maml": Row(
        "MAML from scratch, statistics of the support set", partial(_full, recipe=mp.methods.maml), scratch=True,
        grid={"lr": (0.01, 0.1), "steps": (5,)}, training=MAML,
    ),
    "anil": Row(
        "ANIL from scratch, statistics of the support set", partial(_full, recipe=mp.methods.anil), scratch=True,
        grid={"lr": (0.1, 0.4), "steps": (5,)}, training=MAML,
    ),
}  # fmt: skip

# Row -> problem -> what is published for Conv-4-64, each by its own protocol, and where.
PUBLISHED: dict[str, dict[str, str]] = {
    "rfs-simple": {"miniimagenet-5w1s": "47.97", "miniimagenet-5w5s": "65.88"},
    "protonet": {"miniimagenet-5w1s": "49.42", "miniimagenet-5w5s": "68.20"},
    "r2d2": {
        "miniimagenet-5w1s": "49.50", "miniimagenet-5w5s": "65.40", "omniglot-5w1s": "98.91", "omniglot-5w5s": "99.74",
    },
    "maml": {
        "miniimagenet-5w1s": "48.70", "miniimagenet-5w5s": "63.11", "omniglot-5w1s": "98.7", "omniglot-5w5s": "99.9",
        "omniglot-20w1s": "95.8", "omniglot-20w5s": "98.9",
    },
    "anil": {"miniimagenet-5w1s": "46.70", "miniimagenet-5w5s": "61.50"},
}  # fmt: skip
SOURCES = {
    "rfs-simple": "Tian et al. 2020", "protonet": "Snell et al. 2017",
    "r2d2": "Bertinetto et al. 2019", "maml": "Finn et al. 2017", "anil": "Raghu et al. 2020",
}  # fmt: skip


def optimizer() -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Of all trainings here, with its options but the decay."""
    return torch.optim.SGD, {"momentum": 0.9, "nesterov": True}

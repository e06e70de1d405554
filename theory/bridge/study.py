"""Standard retraining, Reptile and LoRA-ML from one start, each then adapted with LoRA of rank r and a fresh head.

Standard retraining comes twice: on one softmax over all training classes, and as the paper has it, on binary tasks that
are fixed once, whose labels one output layer shares. Beside them stands the start as it is. What retrains sees the same
number of images in the same number of outer steps, all of it through the toolkit: `mp.pretrain`, `mp.methods`,
`BilevelTrainer`, `mp.evaluate`. Outer rates, and the rate at test (with the number of
steps, where several are given), are chosen on validation classes, by the same number of trials for each method; the
test classes are used once, at the end.

Source of the comparison: Block et al., NeurIPS 2025, arXiv 2410.22264, section 5 (vision and language). Theirs drops
the adapters' biases and turns Reptile's sign round; here biases are trained and Reptile goes towards the adapted point.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import metapeft as mp
from metapeft.learner.learner import Learner
from metapeft.training.evaluation import Evaluation
from metapeft.training.runs.run import Run
from metapeft.training.trainer import BilevelTrainer
from metapeft.training.tuning import Tuned, grid, tune
from theory.bridge.tasks import Family, fixed_tasks
from theory.models.problems import require_positive

METHODS = ("start", "sr-tasks", "sr", "reptile", "lora-ml")
BATCH = 16  # test episodes in one forward; changes no result
TUNING_SEED = 10_000  # of the runs on which retraining rates are chosen; no reported run has it


@dataclass(frozen=True)
class Study:
    """Sizes and budgets of one study; rates are numbers to choose from.

    Args:
        ways, shots: of an episode. training_queries, queries: query items a class, in training and at test.
        start_steps: of the retraining on one softmax that all methods start from; `steps`: outer steps of each
            method after it. tasks: episodes an outer step.
        inner_steps: of Reptile and LoRA-ML in training, by Adam. training_rank: of LoRA-ML's adapters there.
        start_rate: of the common start. outer_rates: of each method's outer Adam. inner_rates: of the two inner loops.
        ranks: at test; 0 adapts the head only. tuning_rank: at which outer rates are chosen.
        test_rates, test_steps: of Adam at test.
        validation_episodes: of each trial. episodes: at test.
    """

    ways: int = 2
    shots: int = 5
    training_queries: int = 5
    queries: int = 10
    start_steps: int = 300
    steps: int = 400
    tasks: int = 4
    inner_steps: int = 5
    training_rank: int = 1
    start_rate: float = 2e-3
    outer_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    inner_rates: Mapping[str, float] = field(default_factory=lambda: {"reptile": 1e-3, "lora-ml": 1e-2})
    ranks: tuple[int, ...] = (0, 1, 2, 8)
    tuning_rank: int = 2
    test_rates: tuple[float, ...] = (0.0015, 0.005, 0.015, 0.05)
    test_steps: tuple[int, ...] = (10, 30)
    validation_episodes: int = 32
    episodes: int = 100

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "training_queries", "queries", "start_steps", "steps", "tasks"):
            require_positive(name, getattr(self, name))
        for name in ("inner_steps", "training_rank", "validation_episodes", "episodes"):
            require_positive(name, getattr(self, name))
        if not self.ranks or min(self.ranks) < 0 or len(set(self.ranks)) != len(self.ranks):
            raise ValueError(f"ranks={self.ranks!r}: allowed are different whole numbers of at least 0")

    @property
    def images(self) -> int:
        """Items that a method sees in an outer step."""
        return self.tasks * self.ways * (self.shots + self.training_queries)

    def as_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return asdict(self)


@dataclass(frozen=True)
class Cell:
    """One method at one rank in one run: the test evaluation, and what was chosen on validation classes."""

    seed: int
    method: str
    rank: int
    test: Evaluation
    chosen: Tuned


def samplers(family: Family, study: Study, seed: int) -> dict[str, Any]:
    """Training, validation and test episodes of one run."""
    sizes = {"train": study.training_queries, "val": study.queries, "test": study.queries}
    return {
        split: mp.EpisodeSampler(
            family.data[split], study.ways, study.shots, queries, 3 * seed + offset, family.shifts[split]
        )
        for offset, (split, queries) in enumerate(sizes.items())
    }


def choose_rates(family: Family, study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """Each method's outer rate: the best of its grid on validation classes, in a run that is not reported.

    Returns: method -> `rate`, and the validation accuracy `trials` of each rate; the start has none.
    """
    found = {}
    episodes = samplers(family, study, TUNING_SEED)
    start, softmax = start_of(family, study, TUNING_SEED, folder)
    for method in METHODS:
        trials = {}
        for rate in study.outer_rates if method != "start" else (0.0,):
            body = retrained(method, rate, start, softmax, family, study, TUNING_SEED, folder)
            trials[rate] = adapted(body, study.tuning_rank, family, study, episodes["val"]).score
        found[method] = {"rate": max(trials, key=lambda rate: trials[rate]), "trials": trials}
    return found


def run(family: Family, study: Study, rates: Mapping[str, float], seed: int, folder: Path) -> list[Cell]:
    """One run: the common start, what is retrained from it, and the test of each at every rank.

    Args:
        rates: method -> outer rate. seed: of everything. folder: keeps the retrainings, which a second call resumes.
    """
    episodes = samplers(family, study, seed)
    start, softmax = start_of(family, study, seed, folder)
    cells = []
    for method in METHODS:
        body = retrained(method, rates[method], start, softmax, family, study, seed, folder)
        for rank in study.ranks:
            chosen = adapted(body, rank, family, study, episodes["val"])
            learner = tester(body, rank, family, **chosen.settings)
            test = mp.evaluate(learner, episodes["test"], study.episodes, tasks_per_batch=BATCH)
            cells.append(Cell(seed, method, rank, test, chosen))
    return cells


def start_of(family: Family, study: Study, seed: int, folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """Where all methods of a run start: a retrained backbone, and the softmax with which retraining goes on."""
    where = folder / f"{seed}-start"
    body = _standard(
        family.backbone(seed), family, study, seed, study.start_steps, study.start_rate, where, None
    )
    with Run.open(where, writable=False) as kept:
        state = kept.load("latest")[0]["learner"]
    return body, {name: state[name] for name in ("softmax.weight", "softmax.bias")}


def retrained(
    method: str,
    rate: float,
    start: nn.Module,
    softmax: Mapping[str, Tensor],
    family: Family,
    study: Study,
    seed: int,
    folder: Path,
) -> nn.Module:
    """The backbone after `study.steps` outer steps of one method.

    Reptile and LoRA-ML adapt to all items of a task (`inner_data="both"`), from a head of zeros, as at test.
    """
    if method == "start":
        return start
    where = folder / f"{seed}-{method}-{rate:g}"
    if method == "sr":
        return _standard(start, family, study, seed + 1, study.steps, rate, where, softmax)
    if method == "sr-tasks":
        tasks = replace(
            family, data={**family.data, "train": fixed_tasks(family.data["train"], study.ways, seed)}
        )
        return _standard(start, tasks, study, seed + 1, study.steps, rate, where, None)
    inner = mp.inner.Adam(study.inner_steps, study.inner_rates[method])
    common: dict[str, Any] = {"inner": inner, "head": "zero", "norm": "running", "inner_data": "both"}
    common["preprocess"] = family.data["train"].preprocess
    if method == "reptile":
        learner = mp.methods.reptile(start, **common)
    else:  # the published form: W0 moves by the partial gradient at the adapted factors
        learner = mp.methods.lora_ml(
            start, rank=study.training_rank, targets="body", hypergradient="envelope", **common
        )
    trainer = BilevelTrainer(
        learner, lr=rate, tasks_per_step=study.tasks, clip=10.0, schedule="cosine", progress=False
    )
    train = samplers(family, study, seed)["train"]
    if trainer.has_run(where):
        trainer.resume(where, train)
    else:
        trainer.fit(train, study.steps, run_dir=where)
    return with_weights(start, learner)


def _standard(
    body: nn.Module,
    family: Family,
    study: Study,
    seed: int,
    steps: int,
    rate: float,
    where: Path,
    softmax: Mapping[str, Tensor] | None,
) -> nn.Module:
    """Standard retraining on one softmax over the training classes, in groups of as many items as an episode."""
    trained: nn.Module = mp.pretrain(
        body, family.data["train"], steps, group=study.images // study.tasks, groups=study.tasks, lr=rate,
        seed=seed, softmax=softmax, shift=family.shifts["train"], run_dir=where, resume=True, progress=False,
    )[0]  # fmt: skip
    return trained


def with_weights(body: nn.Module, learner: Learner) -> nn.Module:
    """A copy of a backbone with the weights and buffers of a learner that was made of it."""
    moved, own = copy.deepcopy(body), learner.state()
    found = {
        name: own.get(f"weights.{name}", own.get(f"buffers.{name}", value))
        for name, value in moved.state_dict().items()
    }
    moved.load_state_dict(found)
    return moved


def tester(body: nn.Module, rank: int, family: Family, lr: float, steps: int) -> Learner:
    """What every method is tested with: LoRA of one rank on all layers but the classifier, a fresh head of zeros."""
    made: Learner = mp.methods.sr_lora(
        body, rank=rank, inner=mp.inner.Adam(steps, lr), head="zero", targets="body",
        preprocess=family.data["train"].preprocess,
    )  # fmt: skip
    return made


def adapted(body: nn.Module, rank: int, family: Family, study: Study, validation: Any) -> Tuned:
    """The rate and number of steps at test, chosen on validation classes; the same trials for every method."""
    trials = grid(lr=study.test_rates, steps=study.test_steps)
    return tune(
        lambda lr, steps: tester(body, rank, family, lr, steps), trials, validation, study.validation_episodes
    )

"""One method of the main job: choose on validation episodes, train, choose again, evaluate on test episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from metapeft.experiments.compared_methods import METHODS, Method, round_ranks
from metapeft.experiments.config import TrainConfig
from metapeft.experiments.job import Job, Start
from metapeft.experiments.outcome import Outcome
from metapeft.experiments.results import COLUMNS
from metapeft.generators.control import OtherTask
from metapeft.heads.centroids import PrototypeInit, Prototypes
from metapeft.inner.descent import SGD
from metapeft.learner.learner import Learner
from metapeft.methods.recipes import metapeft
from metapeft.training.evaluation import Evaluation, evaluate
from metapeft.training.runs.learner_in_run import is_saved, save
from metapeft.training.trainer import BilevelTrainer
from metapeft.training.tuning import Tuned, grid, inner_steps, tune
from metapeft.updates.formats.selection import at_ranks


def outcome_of(name: str, job: Job, start: Start, done: Mapping[str, Outcome]) -> Outcome:
    """What comes out of a method, from a start that was chosen for it.

    Args:
        done: the outcomes of methods before, among them that which this one needs.
    """
    method, config, together = METHODS[name], job.config, job.processes
    if method.control_of is not None:
        return _control(name, job, start, done[method.control_of])
    ranks: dict[str, dict[str, int]] = {}
    more: dict[str, Any] = {}
    if method.ranks_from is not None:
        searched = done[method.ranks_from].learner
        ranks = {method.rule: round_ranks(searched, method.rule, config.seed)}
        more = {"format": at_ranks(searched.model, ranks[method.rule])}
    make = partial(_made, name, job, start, **more)
    chosen: dict[str, Any] = {"scale": start.scale}
    settings: dict[str, Any] = {}
    if method.adapts:
        tuned = Tuned(**together.decided(lambda: asdict(tune(make, _trials(config), *_validation(job)))))
        chosen["train"] = {**tuned.settings, "validation": tuned.score, "trials": tuned.trials}
        settings = tuned.settings
    outcome = Outcome(make(**settings), chosen, ranks=ranks)
    if method.trains:
        outcome.log = _trained(outcome.learner, job, job.folder / name)
    elif together.main and not is_saved(job.folder / name):
        save(outcome.learner, job.folder / name, job.samplers.train)
    if outcome.learner.selection is not None:
        outcome.ranks = {rule: round_ranks(outcome.learner, rule) for rule in ("threshold", "total")}
    if together.main:  # what is only read is measured once
        for column in COLUMNS:
            steps = _chosen_steps(outcome, method, job, column) if method.adapts else None
            outcome.evaluations[column] = _evaluation(outcome.learner, job, column, steps)
    return outcome


def _made(
    name: str, job: Job, start: Start, lr: float | None = None, steps: int | None = None, **more: Any
) -> Learner:
    """The method's learner, with SGD of that rate and number of steps where it adapts and both are given."""
    method = METHODS[name]
    head = PrototypeInit if method.adapts and method.adapts_head else Prototypes
    options = {
        **job.place,
        "head": head(start.scale),
        **method.sized(job.config.rank),
        **method.options,
        **more,
    }
    if method.make is metapeft:
        options.setdefault("shots", job.config.shots)
    if method.adapts and lr is not None and steps is not None:
        options["inner"] = SGD(steps, lr, rates="step" if method.trains and method.learns_rates else None)
    return method.make(start.body, preprocess=job.data.preprocess, seed=job.config.seed, name=name, **options)


def _control(name: str, job: Job, start: Start, original: Outcome) -> Outcome:
    """A trained method, evaluated with its generator fed another task's support set."""
    generator = original.learner.generator
    if generator is None:
        raise ValueError(f"{name!r} needs a generator, and {original.learner.name!r} has none")
    learner = _made(name, job, start, inner=original.learner.inner, generator=OtherTask(generator))
    learner.load_state(original.learner.state())
    outcome = Outcome(learner, original.chosen)
    if job.processes.main:
        for column in COLUMNS:
            steps = original.chosen[column]["steps"]
            outcome.evaluations[column] = _evaluation(learner, job, column, steps)
    return outcome


def _trials(config: TrainConfig) -> list[dict[str, Any]]:
    """The inner rates to try, at the number of inner steps that is nearest to 5."""
    steps = min(config.inner_steps, key=lambda count: (abs(count - 5), count))
    return grid(lr=config.inner_lrs, steps=[steps])


def _validation(job: Job) -> tuple[Any, int]:
    """The episodes on which training settings are chosen, and how many of them."""
    return job.samplers.validation["shifted"], job.config.validation_episodes


def _chosen_steps(outcome: Outcome, method: Method, job: Job, column: str) -> int:
    """The number of inner steps that is best on the column's validation episodes; the outcome notes it."""
    episodes, budget = job.samplers.validation[column], job.config.validation_episodes
    steps, scores = inner_steps(outcome.learner, episodes, budget, job.config.inner_steps)
    outcome.chosen[column] = {"steps": steps, "validation": scores}
    return steps


def _evaluation(learner: Learner, job: Job, column: str, steps: int | None) -> Evaluation:
    return evaluate(learner, job.samplers.test[column], job.config.episodes, steps=steps, diverged="wrong")


def _trained(learner: Learner, job: Job, folder: Path) -> list[dict[str, Any]]:
    """The training log; the learner ends with its best state on validation episodes, the start included."""
    config, (validation, budget) = job.config, _validation(job)
    rates = {"weights": config.weights_lr, "default": config.lr}
    lr = {group: rate for group, rate in rates.items() if group == "default" or group in learner.outer}
    trainer = BilevelTrainer(
        learner, lr=lr, tasks_per_step=config.tasks_per_step, clip=10.0, schedule="cosine",
        progress=job.progress, memory=config.memory,
    )  # fmt: skip
    if trainer.has_run(folder):
        return trainer.resume(folder, job.samplers.train, validation)
    return trainer.fit(
        job.samplers.train, config.steps, validation, folder, checkpoint_every=25, validate_start=True,
        validate_every=config.steps, validation_episodes=budget,
    )  # fmt: skip

"""One method of the main job: choose on validation episodes, train, choose again, evaluate on test episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from metapeft.experiments.compared_methods import METHODS, Method, round_ranks
from metapeft.experiments.config import TrainConfig
from metapeft.experiments.job import Job, Start
from metapeft.experiments.outcome import Outcome
from metapeft.experiments.samplers import Column
from metapeft.heads.centroids import PrototypeInit, Prototypes
from metapeft.inner.descent import SGD
from metapeft.learner.learner import Learner
from metapeft.methods.common import default_encoder
from metapeft.methods.recipes import metapeft
from metapeft.training.evaluation import evaluate
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
        trials = _told(name, job, _trials(config))
        tuned = Tuned(**together.decided(lambda: asdict(tune(make, trials, *_validation(job)))))
        chosen["train"] = {**tuned.settings, "validation": tuned.score, "trials": tuned.trials}
        settings = tuned.settings
    outcome = Outcome(make(**settings), chosen, ranks=ranks)
    if method.trains:
        job.view.begin(name, "training", "training")
        outcome.log = _trained(outcome.learner, method, job, job.folder / name)
    elif together.main and not is_saved(job.folder / name):
        save(outcome.learner, job.folder / name, job.samplers.train)
    if outcome.learner.selection is not None:
        outcome.ranks = {rule: round_ranks(outcome.learner, rule) for rule in ("threshold", "total")}
    if together.main:  # what is only read is measured once
        job.view.begin(name, "evaluating", "choosing inner steps")
        for column in job.samplers.columns:
            if method.adapts and column.steps is None:
                outcome.chosen[column.name] = _chosen_steps(outcome.learner, job, column)
        _evaluate(outcome, method, job)
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
        **method.sized(job.config),
        **method.options,
        **more,
    }
    if "format" in more:  # which names its targets
        options.pop("targets", None)
    if method.make is metapeft:
        options.setdefault("shots", job.config.shots)
    if method.control is not None and "generator" not in more:
        options["generator"] = method.control(default_encoder(start.body, None, job.config.shots))
    if method.adapts and lr is not None and steps is not None:
        options["inner"] = SGD(steps, lr, rates="step" if method.trains and method.learns_rates else None)
    return method.make(start.body, preprocess=job.data.preprocess, seed=job.config.seed, name=name, **options)


def _control(name: str, job: Job, start: Start, original: Outcome) -> Outcome:
    """A trained method, evaluated with its generator shown another task's support set."""
    method, learner = METHODS[name], original.learner
    if learner.generator is None:
        raise ValueError(f"{name!r} needs a generator, and {learner.name!r} has none")
    if method.control is not None:
        shown_else = method.control(learner.generator)
        learner = _made(name, job, start, inner=learner.inner, generator=shown_else)
        learner.load_state(original.learner.state())
    outcome = Outcome(learner, original.chosen)
    job.view.begin(name, "evaluating", "testing")
    if job.processes.main:
        _evaluate(outcome, method, job)
    return outcome


def _evaluate(outcome: Outcome, method: Method, job: Job) -> None:
    """Measure a learner on the test episodes of all columns that it has: without inner loop that of no inner steps."""
    columns = [column for column in job.samplers.columns if method.adapts or not column.steps]
    for number, column in enumerate(columns):
        job.view.now(f"testing {number + 1} of {len(columns)}, {column.name}")
        job.view.of(number, len(columns))
        chosen = column.steps is None and method.adapts
        steps = outcome.chosen[column.name]["steps"] if chosen else column.steps
        outcome.evaluations[column.name] = evaluate(
            outcome.learner, column.test, job.config.episodes, steps=steps if method.adapts else None,
            diverged="wrong", shown=method.shown,
        )  # fmt: skip


def _trials(config: TrainConfig) -> list[dict[str, Any]]:
    """The inner rates to try, at the number of inner steps that is nearest to 5."""
    steps = min(config.inner_steps, key=lambda count: (abs(count - 5), count))
    return grid(lr=config.inner_lrs, steps=[steps])


def _told(name: str, job: Job, trials: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The trials one after the other, with a word about each."""
    for number, trial in enumerate(trials):
        if number == 0:
            job.view.begin(name, "choosing", "")
        job.view.now(f"tuning {number + 1} of {len(trials)}, inner rate {trial['lr']:g}")
        job.view.of(number, len(trials))
        yield trial


def _validation(job: Job) -> tuple[Any, int]:
    """The episodes on which training settings are chosen, and how many of them."""
    return job.samplers.validation, job.config.validation_episodes


def _chosen_steps(learner: Learner, job: Job, column: Column) -> dict[str, Any]:
    """The number of inner steps that is best on the column's validation episodes, and all that were tried."""
    budget = job.config.validation_episodes
    steps, scores = inner_steps(learner, column.validation, budget, job.config.inner_steps)
    return {"steps": steps, "validation": scores}


def _trained(learner: Learner, method: Method, job: Job, folder: Path) -> list[dict[str, Any]]:
    """The training log; the learner ends with its best state on validation episodes, the start included."""
    config, (validation, budget) = job.config, _validation(job)
    rates = {"weights": config.weights_lr, "default": config.lr}
    lr = {group: rate for group, rate in rates.items() if group == "default" or group in learner.outer}
    # an inner loop would starve a generator; the controls are trained in the same way
    staged = method.make is metapeft and learner.inner is not None
    trainer = BilevelTrainer(
        learner, lr=lr, tasks_per_step=config.tasks_per_step, clip=10.0, schedule="cosine",
        progress=job.view.tell, memory=config.memory, direct_steps=round(config.direct * config.steps) if staged else 0,
    )  # fmt: skip
    if trainer.has_run(folder):
        return trainer.resume(folder, job.samplers.train, validation)
    return trainer.fit(
        job.samplers.train, config.steps, validation, folder, checkpoint_every=25, validate_start=True,
        validate_every=config.steps, validation_episodes=budget,
    )  # fmt: skip

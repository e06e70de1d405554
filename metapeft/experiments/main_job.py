"""The main job: one start, several methods, the same images, steps and test episodes for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from metapeft.backbones.table import registry as backbones
from metapeft.experiments.compared_methods import METHODS, OWN, Method, check_method
from metapeft.experiments.config import PAIRS, TEXTS, TrainConfig, plain_config
from metapeft.experiments.job import Job, Start
from metapeft.experiments.one_method import outcome_of
from metapeft.experiments.outcome import Outcome, differences
from metapeft.experiments.results import Results
from metapeft.experiments.retraining import retrained
from metapeft.experiments.samplers import Samplers, samplers
from metapeft.experiments.stages import made_before
from metapeft.experiments.work import parts
from metapeft.training.pretraining import softmax_of
from metapeft.training.tuning import calibrated_scale

REFERENCES = ("sr+lora", "centroids")  # that all others are compared with


def references(config: TrainConfig) -> tuple[str, ...]:
    """The rows that all others are compared with: on pairs and texts the whole method, for they are its controls."""
    return (OWN,) if config.data in (*PAIRS, *TEXTS) else REFERENCES


def checked_samplers(config: TrainConfig) -> Samplers:
    """The episodes of a job, with everything refused that can be before anything is written.

    Raises:
        ValueError: unknown methods, episodes that the data cannot give, a backbone that cannot be had.
        DataError: data that is missing or damaged.
    """
    for name in config.methods:
        check_method(name, config.methods)
    found = samplers(config)
    for name in config.methods:
        if METHODS[name].shown is not None and not all(test.kinds for test in found.tests.values()):
            raise ValueError(
                f"methods has {name!r}, but the tasks of data={config.data!r} are of one kind: it is for "
                f"{' and '.join(PAIRS)}"
            )
    make_backbone(config, found.data["train"])
    return found


def make_backbone(config: TrainConfig, data: Any) -> nn.Module:
    """The configured backbone: for images of the data's shape, with random weights; for texts with its own."""
    if config.data in TEXTS:
        encoder: nn.Module = backbones.resolve(config.backbone)(
            config.ways, trained=config.trained_layers, seed=config.seed
        )
        return encoder
    channels, size = data.images.shape[1], data.images.shape[2]
    factory = backbones.resolve(config.backbone)
    options = {"blocks": config.blocks, "neck": config.neck}
    module: nn.Module = factory(
        config.ways, channels=channels, width=config.width, size=size, seed=config.seed,
        **{name: value for name, value in options.items() if value is not None},
    )  # fmt: skip
    return module


def run(job: Job, each: Callable[[str, Outcome], None] | None = None) -> Results:
    """Run the main job in its folder; what is already there is not done again.

    Args:
        each: receives a method's name and what came out for it, as soon as it is there.

    Returns: what came out of every method on the same test episodes, and differences to the baselines. Where torchrun
        started several processes, they train together, and only rank 0 has numbers.
    """
    config, data = job.config, job.data
    methods = in_order(config)
    done = made_before(job.folder, methods)
    planned = parts(config, methods, [column.steps for column in job.samplers.columns])
    trainings = ("retraining", "training")
    job.view.plan([part for part in planned if part.kind not in trainings or done.get(part.stage) != ""])
    if done:
        job.view.say(f"goes on; done before: {', '.join(name + far for name, far in done.items())}")
    job.view.enter("standard retraining", f"all training classes of {data}")
    body, sr_log = retrained(
        job, "sr", make_backbone(config, data), config.pretrain_steps, min(128, len(data)), 1
    )
    start = Start(body, _scale(job, body))
    continued: Start | None = None
    outcomes: dict[str, Outcome] = {}
    for number, (name, method) in enumerate(methods.items(), 1):
        job.view.enter(f"method {number} of {len(methods)}, {name}", method.about)
        if not method.trains and continued is None:
            continued = _continued(job, start)
        begin = start if method.trains or continued is None else continued
        outcomes[name] = outcome_of(name, job, begin, outcomes)
        if each is not None and job.processes.main:
            each(name, outcomes[name])
    outcomes = {name: outcomes[name] for name in config.methods}
    return Results(
        plain_config(config),
        {name: outcome.row(name) for name, outcome in outcomes.items()},
        {
            reference: differences(outcomes, reference)
            for reference in references(config)
            if reference in outcomes
        },
        sr_log,
    )


def in_order(config: TrainConfig) -> dict[str, Method]:
    """The rows of the method table that a job makes, in the order in which it does: none before what it builds on."""
    return {
        name: METHODS[name]
        for name in sorted(config.methods, key=lambda name: METHODS[name].needs is not None)
    }


def _continued(job: Job, start: Start) -> Start:
    """Retraining goes on for as many steps and images as methods are trained for."""
    config = job.config
    images = min(config.ways * (config.shots + config.queries), len(job.data))
    softmax = softmax_of(job.folder / "sr")
    body, _ = retrained(job, "sr-continued", start.body, config.steps, images, config.tasks_per_step, softmax)
    return Start(body, _scale(job, body))


def _scale(job: Job, body: nn.Module) -> float:
    """The scale of nearest-centroid logits that suits a backbone, on validation episodes."""
    episodes, budget = job.samplers.validation, job.config.validation_episodes
    scale: float = job.processes.decided(
        lambda: calibrated_scale(body, episodes, budget, preprocess=job.data.preprocess, **job.place)
    )
    return scale

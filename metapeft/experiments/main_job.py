"""The main job: one start, several methods, the same images, steps and test episodes for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from metapeft import backbones
from metapeft.base.machine import devices as placement
from metapeft.base.machine.processes import processes
from metapeft.datasets.by_name import load_dataset
from metapeft.datasets.shell_options import reader_options
from metapeft.episodes.sampler import EpisodeSampler
from metapeft.episodes.shift import training_styles as training_styles
from metapeft.experiments.compared_methods import METHODS, Method, check_method, rank_option, round_ranks
from metapeft.experiments.config import TrainConfig
from metapeft.experiments.results import Results, Row, adapted_parameters
from metapeft.experiments.retraining import retrained
from metapeft.generators.control import OtherTask
from metapeft.heads.centroids import PrototypeInit, Prototypes
from metapeft.inner.descent import SGD
from metapeft.learner.learner import Learner
from metapeft.training.evaluation import evaluate
from metapeft.training.pretraining import softmax_of
from metapeft.training.runs.learner_in_run import is_saved, save
from metapeft.training.trainer import BilevelTrainer
from metapeft.training.tuning import Tuned, calibrated_scale, grid, inner_steps, tune
from metapeft.updates.formats.selection import at_ranks

COLUMNS = ("plain", "shifted")
Say = Callable[[str], None]


def samplers(config: TrainConfig) -> dict[str, Any]:
    """Training, validation and test episodes: plain ones, and shifted ones in the styles of their split.

    Training episodes, which all methods share, are plain or in a training style.
    """
    options = reader_options(config.data_options, config.root)
    data = {split: load_dataset(config.data, split=split, **options) for split in ("train", "val", "test")}
    sizes = (config.ways, config.shots, config.queries)
    found: dict[str, Any] = {"data": data}
    found["train"] = EpisodeSampler(data["train"], *sizes, seed=config.seed, shift=training_styles())
    for offset, split in enumerate(("val", "test"), 1):
        for column, shift in zip(COLUMNS, (False, True)):
            found[f"{split} {column}"] = EpisodeSampler(
                data[split], *sizes, seed=config.seed + offset, shift=shift
            )
    return found


def make_backbone(config: TrainConfig, data: Any) -> nn.Module:
    """The configured backbone for images of the data's shape, with random weights."""
    channels, size = data.images.shape[1], data.images.shape[2]
    factory = backbones.registry.resolve(config.backbone)
    module: nn.Module = factory(
        config.ways, channels=channels, width=config.width, size=size, seed=config.seed
    )
    return module


def prepared(config: TrainConfig) -> dict[str, Any]:
    """What `run` needs, with everything refused that can be before anything is written.

    Raises:
        ValueError: unknown methods, episodes that the data cannot give, a backbone that cannot be had.
        DataError: data that is missing or damaged.
    """
    for name in config.methods:
        check_method(name, config.methods)
    found = samplers(config)
    make_backbone(config, found["data"]["train"])
    return found


def run(
    config: TrainConfig, found: dict[str, Any], folder: Path, say: Say = print, progress: bool = True
) -> Results:
    """Run the main job in a folder; what is already there is not done again.

    Args:
        config: the settings. found: what `prepared` gave.
        folder: a run folder that exists; every stage has a folder of its own in it.
        say: receives a line a stage. progress: show bars.

    Returns: evaluations of every method on the same test episodes, with their logs. Where torchrun started several
        processes, they train together, and only rank 0 evaluates.
    """
    data = found["data"]["train"]
    say(f"{data}: standard retraining on all training classes")
    start, sr_log = retrained(
        config,
        folder / "sr",
        make_backbone(config, data),
        data,
        config.pretrain_steps,
        min(128, len(data)),
        1,
        progress,
    )
    softmax = softmax_of(folder / "sr")
    scale = _scale(config, start, found)
    continued: tuple[nn.Module, float] | None = None
    rows: dict[str, Row] = {}
    ordered = sorted(config.methods, key=lambda name: METHODS[name].needs is not None)
    for name in ordered:
        method = METHODS[name]
        say(f"{name}: {method.about}")
        begin = start, scale
        if not method.trains:
            if continued is None:
                images = config.tasks_per_step, config.ways * (config.shots + config.queries)
                body, _ = retrained(
                    config, folder / "sr-continued", start, data, config.steps, min(images[1], len(data)), images[0],
                    progress,
                    softmax,
                )  # fmt: skip
                continued = body, _scale(config, body, found)
            begin = continued
        rows[name] = _row(name, method, *begin, config, folder, found, progress, rows)
    rows = {name: rows[name] for name in config.methods}
    return Results(config, rows, sr_log, found)


def _scale(config: TrainConfig, body: nn.Module, found: dict[str, Any]) -> float:
    """The scale of nearest-centroid logits that suits a start, on validation episodes."""
    place = placement.options(config.device, config.dtype, config.autocast)
    preprocess = found["data"]["train"].preprocess
    budget = config.validation_episodes
    scale: float = processes().decided(
        lambda: calibrated_scale(body, found["val shifted"], budget, preprocess=preprocess, **place)
    )
    return scale


def _row(
    name: str,
    method: Method,
    body: nn.Module,
    scale: float,
    config: TrainConfig,
    folder: Path,
    found: dict[str, Any],
    progress: bool,
    rows: dict[str, Row],
) -> Row:
    """Choose, train, choose again, evaluate: one method."""
    row = Row(name, chosen={"scale": scale})
    head = PrototypeInit(scale) if method.adapts and method.adapts_head else Prototypes(scale)
    preprocess = found["data"]["train"].preprocess
    place = placement.options(config.device, config.dtype, config.autocast)
    extra: dict[str, Any] = {}
    if method.rule is not None:
        searched = rows["metapeft"].learner
        if searched is None:
            raise ValueError(f"{name!r} needs the learner of 'metapeft'")
        chosen_ranks = round_ranks(searched, method.rule, config.seed)
        row.ranks, extra = {method.rule: chosen_ranks}, {"format": at_ranks(searched.model, chosen_ranks)}

    def make(lr: float | None = None, steps: int | None = None, **more: Any) -> Learner:
        options = {
            **place,
            "head": head,
            **rank_option(method, config.rank),
            **method.options,
            **extra,
            **more,
        }
        if method.adapts and lr is not None and steps is not None:
            options["inner"] = SGD(steps, lr, rates="step" if method.trains and method.learns_rates else None)
        return method.make(body, preprocess=preprocess, seed=config.seed, name=name, **options)

    if method.control_of is not None:
        return _control(row, method, make, config, found, rows)
    training_steps = min(config.inner_steps, key=lambda steps: (abs(steps - 5), steps))
    budget = config.validation_episodes
    if method.adapts:
        trials = grid(lr=config.inner_lrs, steps=[training_steps])
        tuned = Tuned(**processes().decided(lambda: asdict(tune(make, trials, found["val shifted"], budget))))
        row.chosen["train"] = _told(tuned)
        row.learner = make(**tuned.settings)
    else:
        row.learner = make()
    if method.trains:
        row.log = _trained(row.learner, config, folder / name, found, progress)
    elif processes().main and not is_saved(folder / name):
        save(row.learner, folder / name, found["train"])
    if row.learner.selection is not None:
        row.ranks = {rule: round_ranks(row.learner, rule) for rule in ("threshold", "total")}
    row.parameters = adapted_parameters(row.learner)
    if not processes().main:  # what is only read is measured once
        return row
    for column in COLUMNS:
        steps = None
        if method.adapts:
            steps, scores = inner_steps(row.learner, found[f"val {column}"], budget, config.inner_steps)
            row.chosen[column] = {"steps": steps, "validation": scores}
        row.evaluations[column] = evaluate(
            row.learner, found[f"test {column}"], config.episodes, steps=steps, diverged="wrong"
        )
    return row


def _control(
    row: Row,
    method: Method,
    make: Callable[..., Learner],
    config: TrainConfig,
    found: dict[str, Any],
    rows: dict[str, Row],
) -> Row:
    """A trained method, evaluated with its generator fed another task's support set."""
    original = rows[str(method.control_of)]
    if original.learner is None or original.learner.generator is None:
        raise ValueError(f"{row.name!r} needs the generator of {method.control_of!r}")
    inner = original.learner.inner
    row.learner = make(inner=inner, generator=OtherTask(original.learner.generator))
    row.learner.load_state(original.learner.state())
    row.chosen, row.parameters = original.chosen, original.parameters
    if not processes().main:
        return row
    for column in COLUMNS:
        steps = original.chosen[column]["steps"]
        row.evaluations[column] = evaluate(
            row.learner, found[f"test {column}"], config.episodes, steps=steps, diverged="wrong"
        )
    return row


def _trained(
    learner: Learner, config: TrainConfig, folder: Path, found: dict[str, Any], progress: bool
) -> list[dict[str, Any]]:
    """The training log; the learner ends with its best state on validation episodes, the start included."""
    episodes, validation = found["train"], found["val shifted"]
    rates = {"weights": config.weights_lr, "default": config.lr}
    lr = {group: rate for group, rate in rates.items() if group == "default" or group in learner.outer}
    trainer = BilevelTrainer(
        learner, lr=lr, tasks_per_step=config.tasks_per_step, clip=10.0, schedule="cosine", progress=progress,
        memory=config.memory,
    )  # fmt: skip
    if trainer.has_run(folder):
        return trainer.resume(folder, episodes, validation)
    return trainer.fit(
        episodes, config.steps, validation, folder, checkpoint_every=25, validate_start=True,
        validate_every=config.steps, validation_episodes=config.validation_episodes,
    )  # fmt: skip


def _told(tuned: Tuned) -> dict[str, Any]:
    return {**tuned.settings, "validation": tuned.score, "trials": tuned.trials}

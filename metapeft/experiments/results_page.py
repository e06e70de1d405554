"""The report of the main job: accuracy by method, curves, ranks by layer, episodes, fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metapeft.experiments.config import TrainConfig
from metapeft.experiments.report.bar_plot import rank_bars
from metapeft.experiments.report.dot_plot import intervals
from metapeft.experiments.report.line_plot import curves
from metapeft.experiments.report.page import Figure, Section, Table, write_report
from metapeft.experiments.report.pictures import episode_grid
from metapeft.experiments.report.regression import fits
from metapeft.experiments.results import COLUMNS, Results, SinusoidResults
from metapeft.experiments.samplers import Samplers
from metapeft.experiments.tables import accuracy, inner_steps, percent, protocol_line


def write(
    folder: Path,
    config: TrainConfig,
    environment: Mapping[str, Any],
    found: Results,
    samplers: Samplers,
) -> Path:
    """Write `report.html` into a run folder; returns the file.

    Args:
        folder, config: the run and its settings. environment: what it ran on. found: its results.
        samplers: of whose test episodes the first are shown.
    """
    sections = [_accuracy(found), _training(found), *_ranks(found, config.rank), _episodes(samplers)]
    if found.sinusoid is not None:
        sections.append(_sinusoid(found.sinusoid))
    episodes = f"{config.ways}-way {config.shots}-shot"
    facts = {
        "data": f"{config.data}, {episodes}, {config.backbone} of width {config.width}",
        "seed": str(config.seed),
        "commit": str(environment.get("commit") or "not from a checkout"),
        "precision": _precision(config),
        "machine": _machine(config, environment),
        "time": f"{found.seconds:.0f} s",
    }
    return write_report(folder, "Few-shot episodes: what adapting brings", sections, facts)


def _precision(config: TrainConfig) -> str:
    dtype = config.dtype or "float32"
    return dtype if config.autocast is None else f"{dtype}, forwards in {config.autocast}"


def _machine(config: TrainConfig, environment: Mapping[str, Any]) -> str:
    on = "" if config.device in (None, "cpu") else f"{environment.get('gpu')}, "
    return f"{on}{environment.get('cpu')}, {environment.get('threads')} threads"


def _accuracy(found: Results) -> Section:
    accuracies = {
        column: {
            name: (row.columns[column].accuracy, row.columns[column].ci95) for name, row in found.rows.items()
        }
        for column in COLUMNS
    }
    table = Table(
        ["method", *COLUMNS, "inner steps", "numbers a task"],
        [
            [
                name,
                *[accuracy(row.columns[column]) for column in COLUMNS],
                inner_steps(row),
                str(row.parameters),
            ]
            for name, row in found.rows.items()
        ],
        protocol_line(found),
    )
    figures = [Figure(intervals(accuracies), "Accuracy on the same test episodes, with 95 % t-intervals.")]
    tables = [table]
    for reference, others in found.differences.items():
        if not others:
            continue
        tables.append(
            Table(
                [f"minus {reference}", *COLUMNS],
                [
                    [name, *[percent(cells[column][0], cells[column][1], sign=True) for column in COLUMNS]]
                    for name, cells in others.items()
                ],
                "points, paired over the same episodes, 95 % t-intervals",
            )
        )
    text = (
        "All methods saw the same number of images in the same number of outer steps, from one start. Shifted: "
        "each test episode draws one style that training never showed. Episodes in which adaptation diverged count "
        "as wrong."
    )
    return Section("Accuracy", text, tables, figures, {name: row.about for name, row in found.rows.items()})


def _training(found: Results) -> Section:
    logs = {name: row.log for name, row in found.rows.items() if row.log}
    figures = [
        Figure(
            curves({"standard retraining": _series(found.sr_log, "loss")}, ylabel="loss"),
            "Standard retraining: cross-entropy over all training classes.",
        )
    ]
    for quantity in ("loss", "accuracy") if logs else ():
        series = {name: _series(log, quantity) for name, log in logs.items()}
        caption = f"Meta-training: mean query {quantity} of an outer step, smoothed."
        figures.append(Figure(curves(series, ylabel=f"query {quantity}", smoothing=0.6), caption))
    return Section("Training", figures=figures)


def _series(log: list[dict[str, Any]], name: str) -> tuple[list[Any], list[Any]]:
    rows = [row for row in log if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _ranks(found: Results, largest: int) -> list[Section]:
    figures = [
        Figure(rank_bars(row.ranks, largest), f"{name}: selection variables rounded to ranks.")
        for name, row in found.rows.items()
        if row.ranks
    ]
    text = (
        "Rounded by the rule of AutoLoRA, a term stays where its weight is at least 1/k, and by a total budget of half "
        "of all terms. Short searches move the weights little, so ranks near k/2 may be noise."
    )
    return [Section("Ranks by layer", text, figures=figures)] if figures else []


def _episodes(samplers: Samplers) -> Section:
    figures = []
    for column in COLUMNS:
        sampler = samplers.test[column]
        episode = sampler[0]
        classes = sampler.dataset.classes
        names = None if episode.classes is None else [classes[i] for i in episode.classes.tolist()]
        grid = episode_grid(episode.support_x, episode.support_y, episode.query_x, episode.query_y, names)
        figures.append(Figure(grid, f"The first test episode, {column}."))
    return Section("Episodes", figures=figures)


def _sinusoid(found: SinusoidResults) -> Section:
    rows = [
        [name, *[f"{mean:.3f} ± {half:.3f}" for mean, half in row.values()]]
        for name, row in found.rows.items()
    ]
    counts = list(next(iter(found.rows.values())))
    table = Table(["mean squared error", *[f"{count} steps" for count in counts]], rows, found.protocol)
    figure = Figure(fits(found.fits), "Test tasks before and after adaptation to 10 points (maml).")
    return Section("Sinusoid regression", "The same recipes with a squared error.", [table], [figure])

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
from metapeft.experiments.results import Regression, Results
from metapeft.experiments.samplers import Samplers
from metapeft.experiments.tables import accuracy_rows, apart, error_rows, protocol_line
from metapeft.experiments.verdict import verdict


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
    if found.regression is not None:
        sections.insert(2, _regression(found.regression))
    if (said := verdict(found)) is not None:
        sections.insert(0, Section("In one sentence", said))
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
    columns = found.columns
    accuracies = {
        column: {
            name: (row.columns[column].accuracy, row.columns[column].ci95)
            for name, row in found.rows.items()
            if column in row.columns
        }
        for column in columns
    }
    figures = [Figure(intervals(accuracies), "Accuracy on the same test episodes, with 95 % t-intervals.")]
    tables = [Table(*accuracy_rows(found), protocol_line(found))]
    for reference, others in found.differences.items():
        if others:
            cells = [[name, *[apart(row.get(column)) for column in columns]] for name, row in others.items()]
            note = "points, paired over the same episodes, 95 % t-intervals"
            tables.append(Table([f"minus {reference}", *columns], cells, note))
    text = (
        "All methods saw the same number of images in the same number of outer steps, from one start. "
        + (
            "Shifted: each test episode draws one style that training never showed. "
            if "shifted" in columns
            else ""
        )
        + "Episodes in which adaptation diverged count as wrong."
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
    for name, sampler in samplers.tests.items():
        episode = sampler[0]
        classes = sampler.dataset.classes
        names = None if episode.classes is None else [classes[i] for i in episode.classes.tolist()]
        there = slice(None) if episode.query_mask is None else episode.query_mask
        query = episode.query_x[there], episode.query_y[there]
        grid = episode_grid(episode.support_x, episode.support_y, *query, names)
        figures.append(Figure(grid, f"The first test episode, {name}."))
    return Section("Episodes", figures=figures)


def _regression(found: Regression) -> Section:
    titles, cells = error_rows(found)
    table = Table(["mean squared error", *titles[1:]], cells, found.protocol)
    if found.name == "sinusoid":
        about = "The same recipes with a squared error."
        caption = "Test tasks before and after adaptation to 10 points (maml)."
    else:
        about = (
            "Functions of five kinds, of which a task shows 10 noisy points: the same recipes with a squared error, "
            "and an encoder of points. Where a cell has no number, adapting diverged in a test task."
        )
        caption = (
            "A test task of each kind. Before: the constant update, which knows nothing of the task; after: metapeft, "
            "generated and adapted as in training."
        )
    return Section(f"Regression of {found.name}", about, [table], [Figure(fits(found.fits), caption)])

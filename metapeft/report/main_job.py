"""The report of the main job: accuracy by method, curves, ranks by layer, episodes, fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metapeft.cli.tables import percent, protocol_line
from metapeft.experiment import COLUMNS, Results
from metapeft.report.bar_plot import rank_bars
from metapeft.report.dot_plot import intervals
from metapeft.report.line_plot import curves
from metapeft.report.page import Figure, Section, Table, write_report
from metapeft.report.pictures import episode_grid
from metapeft.report.regression import fits as draw_fits
from metapeft.sinusoids import STEPS, Sinusoids
from metapeft.updates.ranking import ranks


def write(
    folder: Path, environment: Mapping[str, Any], results: Results, fits: Sinusoids | None, found: dict[str, Any]
) -> Path:
    """Write `report.html` into a run folder; `found` is what `results.json` holds. Returns the file."""
    sections = [_accuracy(found), _training(results), *_ranks(results), _episodes(results)]
    if fits is not None:
        sections.append(_sinusoid(fits, found))
    config = results.config
    facts = {
        "data": f"{config.data}, {config.ways}-way {config.shots}-shot, {config.backbone} of width {config.width}",
        "seed": str(config.seed),
        "commit": str(environment.get("commit") or "not from a checkout"),
        "machine": f"{environment.get('cpu')}, {environment.get('threads')} threads",
        "time": f"{found['seconds']:.0f} s",
    }
    return write_report(folder, "Few-shot episodes: what adapting brings", sections, facts)


def _accuracy(found: dict[str, Any]) -> Section:
    rows = found["rows"]
    groups = {
        column: {name: (row["columns"][column]["accuracy"], row["columns"][column]["ci95"]) for name, row in rows.items()}
        for column in COLUMNS
    }
    protocol = protocol_line(found)
    table = Table(
        ["method", *COLUMNS, "numbers a task"],
        [
            [name, *[percent(*groups[column][name]) for column in COLUMNS], str(row["parameters"])]
            for name, row in rows.items()
        ],
        protocol,
    )
    figures = [Figure(intervals(groups), "Accuracy on the same test episodes, with 95 % t-intervals.")]
    tables = [table]
    for reference, others in found["differences"].items():
        if not others:
            continue
        tables.append(
            Table(
                [f"minus {reference}", *COLUMNS],
                [[name, *[percent(*cells[column], sign=True) for column in COLUMNS]] for name, cells in others.items()],
                "points, paired over the same episodes, 95 % t-intervals",
            )
        )
    text = (
        "All methods saw the same number of images in the same number of outer steps, from one start. Shifted: "
        "each test episode draws one style that training never showed. "
        + " ".join(f"{name}: {row['about']}." for name, row in rows.items())
    )
    return Section("Accuracy", text, tables, figures)


def _training(results: Results) -> Section:
    logs = {name: row.log for name, row in results.rows.items() if row.log}
    figures = [
        Figure(
            curves({"standard retraining": _series(results.sr_log, "loss")}, ylabel="loss"),
            "Standard retraining: cross-entropy over all training classes.",
        )
    ]
    if logs:
        series = {name: _series(log, "loss") for name, log in logs.items()}
        figures.append(Figure(curves(series, ylabel="query loss", smoothing=0.6), "Meta-training: mean query loss of an outer step, smoothed."))
        accuracy = {name: _series(log, "accuracy") for name, log in logs.items()}
        figures.append(Figure(curves(accuracy, ylabel="query accuracy", smoothing=0.6), "Meta-training: mean query accuracy, smoothed."))
    return Section("Training", figures=figures)


def _series(log: list[dict[str, Any]], name: str) -> tuple[list[Any], list[Any]]:
    rows = [row for row in log if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _ranks(results: Results) -> list[Section]:
    figures = []
    for name, row in results.rows.items():
        if row.learner is None or row.learner.selection is None:
            continue
        logits = {p: row.learner.variables[f"selection.{p}"] for p in row.learner.selected}
        total = sum(len(value) for value in logits.values()) // 2
        rounded = {"threshold": ranks(logits, "threshold"), f"total {total}": ranks(logits, "total", total=total)}
        figures.append(Figure(rank_bars(rounded, results.config.rank), f"{name}: selection variables rounded to ranks."))
    text = (
        "Rounded by the rule of AutoLoRA, a term stays where its weight is at least 1/k, and by a total budget of half "
        "of all terms. Short searches move the weights little, so ranks near k/2 may be noise."
    )
    return [Section("Ranks by layer", text, figures=figures)] if figures else []


def _episodes(results: Results) -> Section:
    figures = []
    for column in COLUMNS:
        sampler = results.samplers[f"test {column}"]
        episode = sampler[0]
        names = [sampler.dataset.classes[i] for i in episode.classes.tolist()]
        grid = episode_grid(episode.support_x, episode.support_y, episode.query_x, episode.query_y, names)
        figures.append(Figure(grid, f"The first test episode, {column}."))
    return Section("Episodes", figures=figures)


def _sinusoid(fits: Sinusoids, found: dict[str, Any]) -> Section:
    rows = [
        [name, *[f"{row[str(steps)][0]:.3f} ± {row[str(steps)][1]:.3f}" for steps in STEPS]]
        for name, row in found["sinusoid"]["rows"].items()
    ]
    table = Table(["mean squared error", "before", *[f"after {k}" for k in STEPS[1:]]], rows, found["sinusoid"]["protocol"])
    figure = Figure(draw_fits(fits.fits), "Test tasks before and after 5 steps on 10 points (maml).")
    return Section("Sinusoid regression", "The same recipes with a squared error.", [table], [figure])

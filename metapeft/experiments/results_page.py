"""The report of the main job: a verdict, accuracy by method, episodes, curves, fits, seeds, ranks, time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metapeft.experiments.accuracy_section import accuracy_section
from metapeft.experiments.command_line import command_of
from metapeft.experiments.config import TEXTS, TrainConfig
from metapeft.experiments.learner_sections import episodes_section, kept, ranks_section, seeds_section
from metapeft.experiments.report.bar_plot import stacked_bars
from metapeft.experiments.report.line_plot import curves
from metapeft.experiments.report.page import Figure, Section, Table, write_report
from metapeft.experiments.report.regression import fits
from metapeft.experiments.results import Regression, Results
from metapeft.experiments.samplers import Samplers
from metapeft.experiments.tables import error_rows
from metapeft.experiments.verdict import headline


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
    method = kept(folder, found)
    sections = [
        accuracy_section(found),
        episodes_section(samplers, found, method),
        _training(found),
        *([] if found.regression is None else [_regression(found.regression)]),
        *seeds_section(samplers, method),
        *ranks_section(folder, found, config.rank),
        *_costs(found),
    ]
    episodes = f"{config.ways}-way {config.shots}-shot"
    backbone = config.backbone if config.data in TEXTS else f"{config.backbone} of width {config.width}"
    facts = {
        "data": f"{config.data}, {episodes}, {backbone}",
        "seed": str(config.seed),
        "commit": str(environment.get("commit") or "not from a checkout"),
        "precision": _precision(config),
        "machine": _machine(config, environment),
        "time": f"{found.seconds:.0f} s",
    }
    return write_report(
        folder, "Few-shot episodes: what adapting brings", sections, facts, headline(found) or "",
        command_of(config, folder),
    )  # fmt: skip


def _precision(config: TrainConfig) -> str:
    dtype = config.dtype or "float32"
    return dtype if config.autocast is None else f"{dtype}, forwards in {config.autocast}"


def _machine(config: TrainConfig, environment: Mapping[str, Any]) -> str:
    threads = environment.get("threads")
    on = "" if config.device in (None, "cpu") else f"{environment.get('gpu')}, "
    return f"{on}{environment.get('cpu')}, {threads} thread{'s' * (threads != 1)}"


def _training(found: Results) -> Section:
    logs = {name: row.log for name, row in found.rows.items() if row.log}
    figures = [
        Figure(
            curves({"standard retraining": _series(found.sr_log, "loss")}, ylabel="loss"),
            "Standard retraining: cross-entropy over all training classes. Where it falls at its end, more steps would "
            "give all methods a better start.",
        )
    ]
    for quantity in ("loss", "accuracy") if logs else ():
        series = {name: _series(log, quantity) for name, log in logs.items()}
        caption = (
            f"Meta-training: mean query {quantity} of an outer step, smoothed, what was measured behind it. A curve "
            "that is flat at its end has seen enough; one that bends there has not."
        )
        figures.append(Figure(curves(series, ylabel=f"query {quantity}", smoothing=0.6), caption))
    return Section("Training", figures=figures)


def _series(log: list[dict[str, Any]], name: str) -> tuple[list[Any], list[Any]]:
    rows = [row for row in log if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _costs(found: Results) -> list[Section]:
    """Time by stage and by what it did, and memory."""
    if not found.costs:
        return []
    parts = {
        stage: {what: seconds for what, (seconds, _) in kinds.items()} for stage, kinds in found.costs.items()
    }
    rows = []
    for stage, kinds in found.costs.items():
        known = [held for _, held in kinds.values() if held is not None]
        memory = f"{max(known) / 2**20:.0f} MiB" if known else "-"
        rows.append([stage, f"{sum(parts[stage].values()):.1f} s", memory])
    text = (
        "Memory is what the process held at most, with Python, torch and the data. What an earlier call began is left "
        "out."
    )
    caption = (
        "Where the time went. Methods differ by training and evaluating; choosing is the same budget for all that "
        "adapt."
    )
    table = Table(["stage", "time", "memory"], rows)
    return [Section("Time and memory", text, [table], [Figure(stacked_bars(parts, "seconds"), caption)])]


def _regression(found: Regression) -> Section:
    titles, cells = error_rows(found)
    table = Table(
        ["mean squared error", *titles[1:]], cells, f"{found.protocol}. Bold: the lowest.", _lowest(found)
    )
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
            "generated and adapted as in training. It should follow the truth between the support points too."
        )
    return Section(f"Regression of {found.name}", about, [table], [Figure(fits(found.fits), caption)])


def _lowest(found: Regression) -> set[tuple[int, int]]:
    """Row and column of the lowest error by number of inner steps."""
    counts = list(dict.fromkeys(count for row in found.rows.values() for count in row))
    best = set()
    for place, count in enumerate(counts, 1):
        errors = {number: row[count][0] for number, row in enumerate(found.rows.values()) if count in row}
        best.add((min(errors, key=lambda number: errors[number]), place))
    return best

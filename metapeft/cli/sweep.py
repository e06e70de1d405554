"""`metapeft sweep`: the main job for several seeds and methods, a job each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from metapeft.base.whole_numbers import Whole
from metapeft.cli import named_options as named
from metapeft.cli.sweep_jobs import Place
from metapeft.experiments.config import TrainConfig, following_data, plain_config

_DEFAULT, _HERE = TrainConfig(), Place()


def sweep(
    *,
    config: Annotated[TrainConfig, Parameter(name="*")] = _DEFAULT,
    place: Annotated[Place, Parameter(name="*")] = _HERE,
    seeds: tuple[Whole, ...] = (0, 1, 2),
    out: Path,
) -> int:
    """Train every method with every seed, a run each, on a SLURM cluster or here; the same command goes on.

    What is done is not done again; when all is, it prints the table over the seeds and writes sweep.json.

    Parameters
    ----------
    config
        Settings, as for train.
    place
        Where jobs run: submitit's clusters.
    seeds
        Seeds, each once for every method.
    out
        Folder of the sweep: a run folder, a file of options and a log for each job.
    """
    from rich.console import Console

    from metapeft.base.files import write_atomically
    from metapeft.cli.sweep_jobs import collected, launch

    for option, instead in (("seed", "seeds"), ("threads", "processors")):
        if option in named.options():
            raise ValueError(f"{option}: a sweep takes {instead} in its place")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds={seeds}: each once, and at least one")
    config = following_data(config, named.options())
    console = Console(soft_wrap=True)
    tasks = {
        f"{method}-{seed}": (method, _options(config, place, method, seed))
        for method in config.methods
        for seed in seeds
    }
    _write(out, {name: options for name, (_, options) in tasks.items()})
    open_tasks = [name for name in tasks if not (out / name / "results.json").exists()]
    failed: dict[str, str] = {}

    def done(name: str, error: str | None) -> None:
        console.print(f"{name}: {error or 'done'}", markup=False, highlight=False)
        if error is not None:
            failed[name] = error

    waiting = _submitted(out, open_tasks, done, console) if place.cluster == "slurm" else []
    if new := [name for name in open_tasks if name not in {*waiting, *failed}]:
        numbers = launch(out, new, place, done)
        if place.cluster == "slurm":
            waiting += new
            console.print(f"submitted {len(numbers)} jobs: {', '.join(numbers)}", highlight=False)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(tasks)} jobs failed: {', '.join(failed)}; logs are in {out / 'jobs'}, the same "
            "command starts them again"
        )
    if waiting:
        console.print(
            f"{len(waiting)} of {len(tasks)} jobs have not ended: call the same command again",
            highlight=False,
        )
        return 0
    found = collected(out, [(name, method) for name, (method, _) in tasks.items()])
    summary = _summary(found)
    content = {
        "seeds": list(seeds),
        "interval": "95 % t, over seeds",
        "accuracies": found,
        "summary": summary,
    }
    write_atomically(out / "sweep.json", (json.dumps(content, indent=1) + "\n").encode())
    console.print(_table(summary, len(seeds)))
    return 0


def _submitted(
    out: Path, names: list[str], done: Callable[[str, str | None], None], console: Any
) -> list[str]:
    """Those that were submitted and have not ended; `done` is told of the others, which the next call starts again."""
    from metapeft.cli.sweep_jobs import keep_numbers, numbers_of, standing

    numbers, waiting = numbers_of(out), []
    for name in [name for name in names if name in numbers]:
        state, ended = standing(out, name, numbers[name])
        if ended:
            done(name, f"job {numbers.pop(name)} ended without results: {state}")
        else:
            waiting.append(name)
            console.print(f"{name}: job {numbers[name]}, {state}", markup=False, highlight=False)
    if set(numbers) != set(numbers_of(out)):
        keep_numbers(out, numbers)
    return waiting


def _options(config: TrainConfig, place: Place, method: str, seed: int) -> dict[str, Any]:
    """The options of one job; a method that builds on another is trained beside it."""
    from metapeft.experiments.compared_methods import METHODS, check_method

    needs = METHODS[method].needs if method in METHODS else None
    methods = (method,) if needs is None else (needs, method)
    check_method(method, methods)
    own = replace(config, methods=methods, seed=seed, threads=place.processors)
    # what is off is left out too: a sweep that was begun before there was such an option goes on
    return {
        name: value for name, value in plain_config(own).items() if value is not None and value is not False
    }


def _write(out: Path, options: dict[str, dict[str, Any]]) -> None:
    """Keep the options of every job; those of an earlier call have to be the same."""
    from metapeft.base.errors import RunError
    from metapeft.base.files import write_atomically

    if out.is_dir() and any(out.iterdir()) and not (out / "jobs").is_dir():
        raise RunError(f"{out} is no folder of a sweep and not empty: choose a new or an empty one")
    try:
        (out / "jobs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}") from error
    files = {
        out / f"{name}.json": (json.dumps(own, indent=1) + "\n").encode() for name, own in options.items()
    }
    for path, content in files.items():  # all of them, before any is written
        if path.exists() and path.read_bytes() != content:
            raise ValueError(f"{path} has other options, of an earlier sweep: take another --out")
    for path, content in files.items():
        write_atomically(path, content)


def _summary(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean and half-width of the 95 % t-interval over seeds, None for one seed, by method and column."""
    import math

    import torch

    from metapeft.base.intervals import mean_interval

    def one(values: list[float]) -> dict[str, float | None]:
        mean, half = mean_interval(torch.tensor(values, dtype=torch.float64))
        return {"mean": mean, "ci95": half if math.isfinite(half) else None}

    return {m: {column: one(values) for column, values in columns.items()} for m, columns in found.items()}


def _shown(cell: dict[str, Any] | None) -> str:
    from metapeft.experiments.tables import percent

    if cell is None:  # a method without inner loop has no column of inner steps
        return "-"
    return f"{100 * cell['mean']:.2f}" if cell["ci95"] is None else percent(cell["mean"], cell["ci95"])


def _table(summary: dict[str, dict[str, Any]], seeds: int) -> Any:
    from rich.table import Table

    result = Table(title=f"accuracy in %, mean over {seeds} seed(s) ± half-width of its 95 % t-interval")
    columns = list(dict.fromkeys(column for cells in summary.values() for column in cells))
    for column in ("method", *columns):
        result.add_column(column, justify="left" if column == "method" else "right")
    for method, cells in summary.items():
        shown = [_shown(cells.get(column)) for column in columns]
        result.add_row(method, *shown)
    return result

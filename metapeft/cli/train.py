"""`metapeft train`: the main job."""

from __future__ import annotations

import builtins
import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from metapeft.cli import named_options as named
from metapeft.cli.right_folder import run_wanted
from metapeft.experiments.config import (
    BenchConfig,
    PairsConfig,
    TrainConfig,
    following_data,
    plain_config,
    usual,
)

if TYPE_CHECKING:
    from metapeft.base.machine.processes import Processes
    from metapeft.experiments.live_view import LiveView
    from metapeft.experiments.samplers import Samplers
    from metapeft.training.runs.run import Run

_DEFAULT, _BASE = PairsConfig(), TrainConfig()
_RENAMED = {"sinusoid_steps": "function_steps"}  # since version 0.2
_MEANT = {"device": "cpu", "dtype": "float32"}


def train(
    *,
    config: Annotated[PairsConfig, Parameter(name="*")] = _DEFAULT,
    out: Path | None = None,
    resume: bool = False,
    list: bool = False,
    quiet: bool = False,
) -> int:
    """Meta-train and compare methods on few-shot episodes; without options the main job on pairs of glyphs.

    Parameters
    ----------
    config
        Settings.
    out
        Run folder; default runs/ and the time.
    resume
        Go on with the run in --out.
    list
        Only list the methods.
    quiet
        No progress bars.
    """
    if list:
        return _list()
    return start(config, out, resume, quiet, named.options())


def start(
    config: TrainConfig, out: Path | None, resume: bool, quiet: bool, given: frozenset[str] = frozenset()
) -> int:
    """Run the main job in a new folder, or go on with the one in `out`.

    `given` are the settings that the call named, also those at their default; the others follow the data.
    Started by torchrun, all its processes do it together; what torchrun starts again goes on by itself.
    """
    if resume and out is None:
        raise ValueError("--resume needs --out, the run folder to go on with")
    from rich.console import Console

    from metapeft.experiments.live_view import LiveView

    console = Console(soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    with LiveView(console, time.monotonic(), shown=not quiet) as view:  # before torch, which takes its time
        return _start(config, out, resume, given, view)


def _start(config: TrainConfig, out: Path | None, resume: bool, given: frozenset[str], view: LiveView) -> int:
    from metapeft.base.machine import devices
    from metapeft.base.machine.processes import processes, restarts
    from metapeft.experiments.main_job import checked_samplers
    from metapeft.training.runs import shared
    from metapeft.updates.layers.compiled.switch import compiled_used

    together, (restarted, allowed) = processes(), restarts()
    if allowed and out is None:
        raise ValueError("--max-restarts needs --out, the run folder to go on with after a restart")
    if out is None:
        out = Path(together.decided(lambda: str(Path("runs") / time.strftime("%Y%m%d-%H%M%S"))))
    config = following_data(config, given)
    settings = plain_config(config)
    view.now(f"reading {out if resume else config.data}")
    try:
        if resume or (restarted and shared.exists(out, together)):
            with run_wanted(out, "job"), shared.opened(out, together) as run:
                config = configured(run.config.get("train"), config, given)
                devices.ask(config.device, config.autocast)
                with compiled_used(config.compiled):
                    return _run(config, checked_samplers(config), run, view, together)
        devices.ask(config.device, config.autocast)  # before anything is written
        processors = os.cpu_count() or config.threads
        if config.threads > processors:
            raise ValueError(f"threads={config.threads}: this machine has {processors}; 0 leaves it to torch")
        episodes = checked_samplers(config)
        with (
            compiled_used(config.compiled),
            shared.created(out, {"train": settings}, together) as run,
        ):
            return _run(config, episodes, run, view, together)
    except MemoryError as error:
        raise ValueError(str(error) or "out of memory") from error
    except KeyboardInterrupt as error:
        command = "bench" if isinstance(config, BenchConfig) else "train"
        raise KeyboardInterrupt(
            f"stopped; the last checkpoint is kept, and this goes on: metapeft {command} --out {out} --resume"
        ) from error


def configured(
    stored: Any, wanted: TrainConfig | None = None, given: frozenset[str] = frozenset()
) -> TrainConfig:
    """The settings that a run stores as `"train"` in its configuration.

    Args:
        stored: what it stores. wanted: the settings of a call that goes on with it.
        given: those that the call named, be it at their default; of the others the default says nothing.

    Raises:
        RunError: a folder that is no run of this command, or whose settings cannot be read.
        ValueError: a given setting that differs from the stored one.
    """
    from metapeft.base.errors import RunError

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    if isinstance(stored, dict):
        stored = {_RENAMED.get(name, name): value for name, value in stored.items()}
    if not isinstance(stored, dict) or not set(stored) <= names:
        raise RunError(
            "this is no run folder of metapeft train or bench of this version; the folder of one method lies in one"
        )
    if wanted is not None:
        default = usual(wanted)
        for name, value in plain_config(wanted).items():
            before = stored.get(name, default[name])
            said = _MEANT.get(name) if before is None else None  # what leaving it out means
            if value not in (before, said) and (name in given or value != default[name]):
                raise ValueError(
                    f"{name}={value!r}, but the run was started with {before!r}: leave it out, or start anew"
                )
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, builtins.list) else value for name, value in stored.items()
    }
    for name, value in fields.items():
        own = getattr(_BASE, name)
        kinds = (int, float) if isinstance(own, float) else type(own)
        truth = isinstance(value, bool) != isinstance(own, bool)
        if own is not None and (truth or not isinstance(value, kinds)):
            raise RunError(f"the run's config.json holds {name}={value!r}: was it changed?")
    if fields.get("root") is not None:
        fields["root"] = Path(fields["root"])
    return TrainConfig(**fields)


def _list() -> int:
    from rich.console import Console
    from rich.table import Table

    from metapeft.experiments.compared_methods import METHODS

    table = Table.grid(padding=(0, 2))
    table.add_row("method", "what it is", "builds on", style="bold")
    for name, method in METHODS.items():
        table.add_row(name, method.about, method.needs or "")
    Console().print(table)
    return 0


def _run(
    config: TrainConfig,
    samplers: Samplers,
    run: Run,
    view: LiveView,
    together: Processes,
) -> int:
    import torch

    from metapeft.base.machine.freed_memory import keep_freed_memory
    from metapeft.base.machine.memory import highest_bytes
    from metapeft.experiments import functions, main_job, results, results_page
    from metapeft.experiments.job import Job
    from metapeft.experiments.tables import tables
    from metapeft.experiments.verdict import headline

    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)

    job = Job(config, samplers, run.folder, together, view)
    device = torch.device(job.place["device"] or "cpu")
    view.measure = lambda: highest_bytes(device)
    found = main_job.run(job)
    if config.function_steps:
        view.enter("regression of functions", "the same recipes on another kind of task")
        regression = functions.run(
            config.function_steps,
            config.seed,
            run.folder / "functions",
            view,
            config.memory,
            **job.place,
        )
        found = dataclasses.replace(found, regression=regression)
    if not together.main:
        return 0
    view.enter("report", "tables and pictures")
    view.end()
    seconds, path = round(time.monotonic() - view.begun, 1), run.folder / "results.json"
    costs = results.with_costs_before(path, view.clock.costs)
    found = dataclasses.replace(found, seconds=seconds, environment=run.environment, costs=costs)
    results.write(path, found)
    page = results_page.write(run.folder, config, run.environment, found, samplers)
    if (said := headline(found)) is not None:
        view.console.print(f"\n{said}\n", markup=False, highlight=False)
    for shown in tables(found):
        view.console.print(shown)
    view.say(f"report: {page}")
    return 0

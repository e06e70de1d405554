"""`metapeft report`: the page of a run, written again from its results, or several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metapeft.experiments.config import TrainConfig
    from metapeft.experiments.results import Results


def report(run: Path, /, *others: Path, out: Path | None = None) -> int:
    """Write a run's report again and print its tables; of several runs, compare them with the first.

    Parameters
    ----------
    run
        Run folder of train or bench.
    others
        Further run folders, which are compared with it.
    out
        Folder for the page of a comparison, made if missing; without it only the tables are printed.
    """
    if others:
        return _compared([run, *others], out)
    if out is not None:
        raise ValueError(
            "--out is for a comparison, metapeft report A B --out DIR: that of one run lies in its folder"
        )
    from rich.console import Console

    from metapeft.base.errors import stored_in
    from metapeft.experiments import results_page
    from metapeft.experiments.samplers import samplers
    from metapeft.experiments.tables import tables
    from metapeft.experiments.verdict import headline

    folder, config, environment, found = _opened(run)
    with stored_in(folder / "results.json"):
        page = results_page.write(folder, config, environment, found, samplers(config))
        shown, said = tables(found), headline(found)
    console = Console(soft_wrap=True)
    if said is not None:
        console.print(f"\n{said}\n", markup=False, highlight=False)
    for table in shown:
        console.print(table)
    print(f"report: {page}")
    return 0


def _opened(run: Path) -> tuple[Path, TrainConfig, dict[str, Any], Results]:
    """A run's folder, its settings, what it ran on, and its results, which are not empty."""
    from metapeft.base.errors import stored_in
    from metapeft.cli.right_folder import run_wanted
    from metapeft.cli.train import configured
    from metapeft.experiments import results
    from metapeft.training.runs.run import Run

    with run_wanted(run, "job"), Run.open(run, writable=False) as opened:
        config = configured(opened.config.get("train"))
        path = opened.folder / "results.json"
        if not path.exists():
            raise ValueError(f"{run} has no results yet: metapeft train --out {run} --resume")
        found = results.read(path)
        with stored_in(path):
            if not any(row.columns for row in found.rows.values()):
                raise KeyError("columns")
        return opened.folder, config, opened.environment, found


def _compared(runs: Sequence[Path], out: Path | None) -> int:
    from rich.console import Console

    from metapeft.experiments import comparison
    from metapeft.experiments.tables import drawn

    names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs {' '.join(names)}: one is named twice")
    found = {name: _opened(run)[-1] for name, run in zip(names, runs)}
    console = Console(soft_wrap=True)
    console.print(f"\n{comparison.sentence(found)}\n", markup=False, highlight=False)
    for table in (comparison.settings_table(found), comparison.accuracy_table(found)):
        console.print(drawn("", list(table.columns), [list(row) for row in table.rows], table.protocol))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        print(f"report: {comparison.write(out, found)}")
    return 0

"""`metapeft report`: the page of a run, written again from its results."""

from __future__ import annotations

from pathlib import Path


def report(run: Path) -> int:
    """Write a run's report again and print its tables.

    Parameters
    ----------
    run
        Run folder of train or bench.
    """
    from rich.console import Console

    from metapeft.base.errors import stored_in
    from metapeft.cli.train import configured
    from metapeft.experiments import results, results_page
    from metapeft.experiments.samplers import samplers
    from metapeft.experiments.tables import tables
    from metapeft.experiments.verdict import verdict
    from metapeft.training.runs.run import Run

    with Run.open(run, writable=False) as opened:
        config = configured(opened.config.get("train"))
        path = opened.folder / "results.json"
        if not path.exists():
            raise ValueError(f"{run} has no results yet: metapeft train --out {run} --resume")
        found = results.read(path)
        episodes = samplers(config)
        with stored_in(path):
            if not any(row.columns for row in found.rows.values()):
                raise KeyError("columns")
            page = results_page.write(opened.folder, config, opened.environment, found, episodes)
            shown, said = tables(found), verdict(found)
    if said is not None:
        Console(soft_wrap=True).print(f"\n{said}\n", markup=False, highlight=False)
    for table in shown:
        Console().print(table)
    print(f"report: {page}")
    return 0

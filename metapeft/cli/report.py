"""`metapeft report`: the page of a run, written again from its results."""

from __future__ import annotations

import json
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
    from metapeft.experiments.main_job import samplers
    from metapeft.experiments.results_page import write
    from metapeft.experiments.tables import tables
    from metapeft.training.runs.run import Run

    with Run.open(run, writable=False) as opened:
        config = configured(opened.config.get("train"))
        path = opened.folder / "results.json"
        if not path.exists():
            raise ValueError(f"{run} has no results yet: metapeft train --out {run} --resume")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found["rows"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): metapeft train --out {run} --resume") from error
        episodes = samplers(config)
        with stored_in(path):
            if not found["rows"]:
                raise KeyError("row")
            page = write(opened.folder, opened.environment, found, episodes)
            shown = tables(found)
    for table in shown:
        Console().print(table)
    print(f"report: {page}")
    return 0

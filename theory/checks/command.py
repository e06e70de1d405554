"""`theory verify`: run every theorem check, print a table, write the JSON, say whether all bounds hold."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from metapeft.base.arguments import whole
from metapeft.training.runs.environment import environment
from theory.checks.check import BEYOND, Check, CheckFunction
from theory.checks.table import all_checks


def run_checks(checks: list[CheckFunction], seed: int, console: Console) -> tuple[list[Check], float]:
    """Run checks one after another, each with a generator of its own.

    Args:
        checks: as `all_checks()` gives them.
        seed: of the instances.
        console: for the progress bar.

    Returns:
        The measured statements, and the seconds it took.
    """
    start, found = time.perf_counter(), []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("checking", total=len(checks))
        for index, check in enumerate(checks):
            progress.update(task, description=check.__name__.replace("_", " "))
            found += check(np.random.default_rng([seed, index]))
            progress.advance(task)
    return found, time.perf_counter() - start


def report(found: list[Check], seconds: float, seed: int) -> dict[str, Any]:
    """The JSON document, `{"checks": [...], "seconds": ..., "seed": ..., "environment": ...}`.

    A check has `theorem` (0: beyond the paper), `statement`, `instances`, `measured`, `relation` (`"<="` or
    `">="`), `bound`, `passed`, and `detail`; `measured` is null where it is not a finite number.
    """
    rows = [
        {
            "theorem": check.theorem,
            "statement": check.statement,
            "instances": check.instances,
            "measured": float(check.measured) if math.isfinite(check.measured) else None,
            "relation": check.relation,
            "bound": float(check.bound),
            "passed": check.passed,
            "detail": check.detail,
        }
        for check in found
    ]
    return {"checks": rows, "seconds": seconds, "seed": seed, "environment": environment()}


def table(found: list[Check]) -> Table:
    """The terminal's table, one row a statement."""
    made = Table(title="Theorem checks", title_justify="left")
    made.add_column("theorem")
    made.add_column("statement", overflow="fold", ratio=1)
    for column in ("instances", "measured", "bound"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("")
    last = None
    for check in found:
        number = "beyond" if check.theorem == BEYOND else str(check.theorem)
        mark = "[green]pass[/green]" if check.passed else "[bold red]FAIL[/bold red]"
        bound = f"{check.relation} {check.bound:.3g}"
        shown = number if number != last else ""
        made.add_row(shown, check.statement, str(check.instances), f"{check.measured:.3g}", bound, mark)
        last = number
    return made


def verify(json_file: Path | None, seed: int, checks: list[CheckFunction] | None = None) -> bool:
    """Run the checks, print them, write `json_file` if given; True where every bound holds.

    Raises:
        ValueError: a negative seed, a folder for the JSON that does not exist.
    """
    if json_file is not None and json_file.is_dir():
        raise ValueError(f"--json: {json_file} is a folder; name a file in it")
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ValueError(f"--json: the folder {json_file.resolve().parent} does not exist; make it first")
    whole(0, seed=seed)
    console = Console()
    found, seconds = run_checks(all_checks() if checks is None else checks, seed, console)
    console.print(table(found))
    spectrum = next((check.detail["spectrum"] for check in found if "spectrum" in check.detail), None)
    if spectrum:
        shown = ", ".join(f"{value:.3g}" for value in spectrum)
        console.print(f"Hessian spectrum at the spurious minimum: {shown}")
    instances, failed = sum(check.instances for check in found), [c for c in found if not c.passed]
    console.print(f"{len(found)} statements, {instances} instances, {len(failed)} violated, {seconds:.1f} s")
    if json_file is not None:
        json_file.write_text(json.dumps(report(found, seconds, seed), indent=2, allow_nan=False) + "\n")
    return not failed

"""`theory bridge`: one study from the data to its files; what an earlier, interrupted call has done is kept."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from metapeft.base.reading import read_json
from metapeft.training.runs.environment import environment
from theory.bridge import results
from theory.bridge.study import METHODS, TUNING_SEED, Study, choose_rates, run
from theory.bridge.tasks import Family, family
from theory.figures.style import NAMES
from theory.models.problems import require_positive

# Where five examples a class already tell nearly all intents apart, one leaves something to compare.
OF_DATA: dict[str, dict[str, Any]] = {"banking77": {"shots": 1}, "clinc150": {"shots": 1}}
# Runs through everything in seconds; its numbers mean nothing.
QUICK: dict[str, Any] = {
    "start_steps": 10, "steps": 4, "ranks": (0, 1, 4), "outer_rates": (1e-3,), "test_rates": (0.015,),
    "validation_episodes": 8, "episodes": 16,
}  # fmt: skip


def bridge(
    name: str,
    seeds: int,
    out: Path,
    quick: bool = False,
    make: Callable[[str, int], Family] = family,
    study: Study | None = None,
) -> list[Path]:
    """Run a study and write `bridge-<data>.json`, `.csv`, `.png` and `.svg`; the JSON after each run.

    Args:
        name: of the data. seeds: how many runs, with seeds 0, 1, ... out: folder; `runs/<data>` in it keeps the
        retrainings, and rows that are there are not made again. quick: tiny sizes, to see that it works.
        make: name and seed -> family. study: sizes; None for those of the data.

    Raises:
        ValueError: no seeds, a file in place of the folder, results of another study in it.
    """
    require_positive("--seeds", seeds)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; give a folder")
    console, begun = Console(), time.perf_counter()
    chosen = Study(**OF_DATA.get(name, {})) if study is None else study
    chosen = dataclasses.replace(chosen, **QUICK) if quick else chosen
    folder = out / "runs" / name
    made_with = environment()
    earlier = _earlier(out / f"bridge-{name}.json", chosen)
    about, tuned, rows = earlier.get("about", ""), earlier.get("outer_rates", {}), earlier.get("rows", [])
    if not tuned:
        tuned = choose_rates(make(name, TUNING_SEED), chosen, folder)
        for method, one in tuned.items():
            shown = ", ".join(f"{rate:g}: {100 * score:.1f} %" for rate, score in one["trials"].items())
            _say(
                console, begun, f"{NAMES[results.LINES[method]]}, outer rates on validation classes: {shown}"
            )
    rates = {method: tuned[method]["rate"] for method in METHODS}
    found: dict[str, Any] = {}
    for seed in range(seeds):
        if seed not in {row["run"] for row in rows}:
            tasks = make(name, seed)
            rows += [results.row(cell) for cell in run(tasks, chosen, rates, seed, folder)]
            about = tasks.about
            _say(console, begun, f"run {seed + 1} of {seeds}")
        kept = [row for row in rows if row["run"] < seeds]
        found = results.document(name, about, _plain(chosen.as_dict()), _plain(tuned), kept, made_with)
        results.write_json(found, out)
    console.print(table(found["summary"]))
    return [results.write_json(found, out), results.write_csv(found, out), *results.draw(found, out)]


def table(lines: list[results.Row]) -> Table:
    """The terminal's table, one row a method and rank."""
    made = Table(title="Accuracy on test classes, %", title_justify="left")
    for column in ("method", "rank", "accuracy", "difference from SR"):
        made.add_column(column, justify="left" if column == "method" else "right")
    for line in lines:
        cells = (
            f"{100 * line[value]:.2f} ± {100 * line[half]:.2f}"
            for value, half in (("accuracy", "ci95"), ("difference", "difference_ci95"))
        )
        made.add_row(NAMES[line["method"]], str(line["value"]), *cells)
    return made


def _earlier(file: Path, study: Study) -> dict[str, Any]:
    """What an earlier call has written; raises ValueError where it was another study."""
    if not file.exists():
        return {}
    found: dict[str, Any] = read_json(file, again="give another folder, or delete it")
    if not isinstance(found, dict) or found.get("study") != _plain(study.as_dict()):
        raise ValueError(f"--out: {file} holds another study; give another folder, or delete it")
    return found


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def _say(console: Console, begun: float, text: str) -> None:
    console.print(f"{time.perf_counter() - begun:6.0f} s  {text}", highlight=False)

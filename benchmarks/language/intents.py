"""Intents of customers, few-shot: BANKING77 and CLINC150, tested on intents that training never showed.

All rows start from one standard retraining of MiniLM's last two layers on the training intents; updates stand on query
and value of these layers. Inner rates and steps are chosen on validation intents, the same number of trials for all.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.language.rows import file_of, kept, write
from metapeft.base.machine.processes import processes
from metapeft.experiments import main_job
from metapeft.experiments.config import TextsConfig, plain_config
from metapeft.experiments.job import Job
from metapeft.experiments.live_view import LiveView
from metapeft.experiments.outcome import Outcome

DATA = ("banking77", "clinc150")
SHOTS = (5, 1)
METHODS = ("centroids", "metapeft", "other-task", "constant", "blind", "lora-ml", "sr+lora")


def run(
    data: tuple[str, ...] = DATA,
    shots: tuple[int, ...] = SHOTS,
    seed: int = 0,
    episodes: int = 300,
    runs: Path = Path("runs/language"),
    threads: int = 1,
) -> None:
    """Measure all rows that are not there yet.

    Args:
        data, shots: of the columns. seed: of everything. episodes: test episodes. runs: where run folders go.
    """
    torch.set_num_threads(threads)
    for count in shots:
        for name in data:
            _column(
                TextsConfig(
                    data=name, data_options=("max_length=24",), methods=METHODS, ways=10, shots=count, seed=seed,
                    episodes=episodes, validation_episodes=40, autocast="bfloat16",
                ),
                runs / f"intents-{name}-{count}-{seed}",
            )  # fmt: skip


def _column(config: TextsConfig, folder: Path) -> None:
    settings = {
        name: value for name, value in plain_config(config).items() if name not in ("methods", "root")
    }
    files = {
        name: file_of("intents", config.data, config.shots, name, config.seed) for name in config.methods
    }
    missing = [name for name, file in files.items() if not kept(file, settings)]
    if not missing:
        return
    if "other-task" in missing and "metapeft" not in missing:
        missing.insert(0, "metapeft")  # whose weights it takes
    config = dataclasses.replace(config, methods=tuple(missing))
    folder.mkdir(parents=True, exist_ok=True)
    begun = [time.monotonic()]

    def each(name: str, outcome: Outcome) -> None:
        row = dataclasses.asdict(outcome.row(name))
        seconds, begun[0] = time.monotonic() - begun[0], time.monotonic()
        about = {"row": name, "data": config.data, "shots": config.shots, "seed": config.seed}
        score = row["columns"]["plain"]["accuracy"]
        write(files[name], settings, {**about, **row, "score": score, "seconds": round(seconds, 1)})

    with LiveView(Console(), time.monotonic(), shown=False) as view:
        main_job.run(Job(config, main_job.checked_samplers(config), folder, processes(), view), each)

"""Many runs of `metapeft train`, one a method and seed, on a SLURM cluster or on this machine, and their table.

On a cluster jobs are submitit's: it writes the batch script, submits the array and keeps each job's log. A job is a run
folder like any other; what is there already is gone on with.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metapeft.base.arguments import whole
from metapeft.base.errors import RunError, stored_in
from metapeft.base.files import write_atomically
from metapeft.base.machine.byte_units import parse_bytes
from metapeft.base.reading import read_json, sealed
from metapeft.base.whole_numbers import Whole
from metapeft.cli.local_jobs import run_jobs
from metapeft.experiments.results import read

Cluster = Literal["local", "slurm"]
_NUMBERS = "submitted.json"
_ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "TIMEOUT",
)


@dataclass(frozen=True)
class Place:
    """Where jobs run, and what each of them gets.

    Parameters
    ----------
    cluster
        slurm, or local: processes on this machine.
    processors
        Of a job; torch takes as many threads in it.
    job_memory
        Of a job, such as 8GiB: what SLURM reserves.
    minutes
        A job may take.
    parallel
        Jobs at once.
    partition
        Of SLURM; default its own.
    """

    cluster: Cluster = "local"
    processors: Whole = 2
    job_memory: str = "8GiB"
    minutes: Whole = 60
    parallel: Whole = 1
    partition: str | None = None

    def __post_init__(self) -> None:
        whole(processors=self.processors, minutes=self.minutes, parallel=self.parallel)
        parse_bytes(self.job_memory, "job_memory")
        if self.partition is not None and self.cluster != "slurm":
            raise ValueError(f"partition={self.partition!r} has no effect with cluster={self.cluster!r}")

    def executor(self, folder: Path) -> Any:
        """Submitit's executor for a cluster, with its scripts and logs in a folder.

        Raises:
            ImportError: submitit is missing. ValueError: no SLURM here.
        """
        try:
            import submitit
        except ImportError as error:
            raise ImportError("sweeps on a cluster need submitit: pip install 'metapeft[slurm]'") from error
        try:
            # as often as SLURM takes a job's processors away, it is to go on
            made = submitit.AutoExecutor(folder, cluster=self.cluster, slurm_max_num_timeout=sys.maxsize)
        except RuntimeError as error:
            raise ValueError(f"cluster={self.cluster!r}: {error}") from error
        made.update_parameters(
            name="metapeft", timeout_min=self.minutes, cpus_per_task=self.processors,
            mem_gb=math.ceil(parse_bytes(self.job_memory, "job_memory") / 2**30),
        )  # fmt: skip
        made.update_parameters(slurm_array_parallelism=self.parallel)
        if self.partition is not None:
            made.update_parameters(slurm_partition=self.partition)
        return made


@dataclass(frozen=True)
class Job:
    """One run, or the rest of it: `metapeft --config OPTIONS train --out FOLDER`, when it is called.

    Raises:
        RunError: it ended with another exit code than 0; its log says why.
    """

    options: str
    folder: str

    def command(self) -> list[str]:
        """What stands behind `metapeft` in the shell."""
        begun = ["--resume"] if (Path(self.folder) / "config.json").exists() else []
        return ["--config", self.options, "train", "--out", self.folder, "--quiet", *begun]

    def __call__(self) -> None:
        from metapeft.cli.shell import run

        code = run(self.command())
        options = Path(self.options)
        write_atomically(_outcome(options.parent, options.stem), json.dumps(sealed({"code": code})).encode())
        if code:
            raise RunError(f"{self.folder} ended with exit code {code}")

    def checkpoint(self) -> Any:
        """What SLURM is to start again after it took the processors away or the time was up: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch(
    folder: Path, tasks: Iterable[str], place: Place, done: Callable[[str, str | None], None]
) -> list[str]:
    """Start the jobs whose options lie in `folder/NAME.json`, with `folder/NAME` as run folder.

    Args:
        tasks: their names. done: called for each job that ended, with its name and what went wrong (None: nothing).

    Returns: the numbers of the jobs on the cluster; on this machine all of them have ended.
    """
    folder, names = folder.resolve(), list(tasks)
    jobs = {name: Job(str(folder / f"{name}.json"), str(folder / name)) for name in names}
    if place.cluster == "local":
        commands = {name: job.command() for name, job in jobs.items()}
        run_jobs(commands, folder / "jobs", place.parallel, place.minutes, done)
        return []
    for name in names:
        _outcome(folder, name).unlink(missing_ok=True)
    # a folder of this call alone, which nobody can have filled: submitit keeps pickles in it
    executor = place.executor(Path(tempfile.mkdtemp(prefix="submitit-", dir=folder / "jobs")))
    with executor.batch():
        begun = [executor.submit(job) for job in jobs.values()]
    given = {name: str(one.job_id) for name, one in zip(names, begun)}
    keep_numbers(folder, numbers_of(folder) | given)
    return list(given.values())


def _outcome(folder: Path, name: str) -> Path:
    """Where a job on a cluster says how it ended."""
    return folder / "jobs" / f"{name}.outcome.json"


def numbers_of(folder: Path) -> dict[str, str]:
    """The numbers of the jobs that were submitted and not yet reported as ended, by name.

    Raises:
        RunError: a file that cannot be read.
    """
    path = folder / "jobs" / _NUMBERS
    if not path.exists():
        return {}
    try:
        return {str(name): str(number) for name, number in read_json(path).items()}
    except (RunError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def keep_numbers(folder: Path, numbers: dict[str, str]) -> None:
    """Write what `numbers_of` reads."""
    write_atomically(folder / "jobs" / _NUMBERS, (json.dumps(sealed(numbers), indent=1) + "\n").encode())


def standing(folder: Path, name: str, number: str) -> tuple[str, bool]:
    """How a submitted job stands, and whether it has ended; of one that ended without its results, why.

    SLURM's accounting (`sacct`) is asked; where it is not there, a job that has not said its end counts as waiting.
    Only what the job itself wrote as JSON is read: submitit's own files are pickles, and a folder may be another's.
    """
    import submitit

    path = _outcome(folder, name)
    if path.exists():
        with stored_in(path):
            return f"exit code {int(read_json(path)['code'])}", True
    job: Any = submitit.SlurmJob(folder.resolve() / "jobs", number)
    state = str(job.state).upper()
    return state, state.startswith(_ENDED)


def collected(folder: Path, tasks: Iterable[tuple[str, str]]) -> dict[str, dict[str, list[float]]]:
    """Accuracies by method and column, a number a seed, of the jobs `(name, method)` that have ended.

    Raises:
        RunError: results that cannot be read.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name, method in tasks:
        path = folder / name / "results.json"
        if not path.exists():
            continue
        with stored_in(path):
            columns = read(path).rows[method].columns
        own = found.setdefault(method, {})
        for column, cell in columns.items():
            own.setdefault(column, []).append(cell.accuracy)
    return found

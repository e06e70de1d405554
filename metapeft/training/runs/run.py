"""Run folders: what one training run keeps on disk, so that it can be resumed, read and reported.

config.json            the settings, as they were given
environment.json       the software and the machine
metrics.jsonl          one JSON object a line, each with a "step"
checkpoints/           latest.safetensors, best.safetensors
.lock                  held by the process that writes; the system frees it when that process dies
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from metapeft.base.errors import RunError
from metapeft.base.files import NO_LINK, clear_partials, is_partial, refuse_links, write_atomically
from metapeft.base.reading import read_json, sealed
from metapeft.training.runs import checkpoint, lock, metrics
from metapeft.training.runs.environment import environment

LOCK = ".lock"
METRICS = "metrics.jsonl"
# What `create` may find in a folder that it takes, beside what was in the making: the remains of a process that died.
_REMAINS = {LOCK, f"{LOCK}.held", "environment.json"}
_log = logging.getLogger("metapeft")


class Run:
    """One run folder; made by `Run.create` or `Run.open`, closed by `close` or at the end of a `with`.

    Attributes:
        folder: where it is.
        config: the settings it was created with.
        environment: the software and the machine it was created on, see `environment`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Run.create(f"{folder}/x", {"ways": 5}) as run:
        ...         for step in range(4):
        ...             run.log(step, loss=1.0 / (1 + step))
        ...         run.save("latest", {"weights": [0.5]}, {"step": 1})
        ...     with Run.open(f"{folder}/x") as run:
        ...         state, metadata = run.load("latest")
        ...         run.truncate(metadata["step"])
        ...         print(run.config, state, run.metrics())
        {'ways': 5} {'weights': [0.5]} [{'step': 0, 'loss': 1.0}, {'step': 1, 'loss': 0.5}]
    """

    def __init__(self, folder: Path, writable: bool) -> None:
        self.folder = folder
        self._refuse_links()
        self._lock = lock.take(folder / LOCK) if writable else None
        self._metrics: TextIO | None = None
        self._rows: list[str] = []
        if writable:
            for place in (folder, self._checkpoints):
                if place.is_dir():
                    clear_partials(place)
        self.config: dict[str, Any] = {}
        self.environment: dict[str, Any] = {}

    @classmethod
    def create(cls, folder: str | os.PathLike[str], config: Mapping[str, Any]) -> Run:
        """Start a run in a new or empty folder, and take its lock.

        Args:
            folder: where; folders above it are made.
            config: the settings: anything that JSON can say.

        Raises:
            RunError: if the folder holds a run or anything else, is in use, or cannot be written.
            ValueError: if JSON cannot say the settings.
        """
        folder = Path(folder)
        try:
            settings = _json(sealed(config))
        except TypeError as error:
            raise ValueError(f"config={config!r}: must hold what JSON can say ({error})") from error
        try:
            if folder.exists() and not folder.is_dir():
                raise RunError(f"{folder} is a file: a run needs a folder of its own")
            if folder.is_dir():
                _check_free(folder)  # before anything is written into what may be somebody else's
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror or error}") from error
        run = cls(folder, writable=True)
        try:
            _check_free(folder)  # again, for another process may have been quicker
            write_atomically(folder / "environment.json", _json(sealed(environment())))
            write_atomically(folder / "config.json", settings)
            return run._read()
        except BaseException:
            run.close()
            raise

    @classmethod
    def open(cls, folder: str | os.PathLike[str], writable: bool = True) -> Run:
        """Open an existing run, by default to go on with it.

        Args:
            folder: where it is.
            writable: take the lock; without it the run can only be read, also while it is being written.

        Raises:
            RunError: if it is no run folder, is in use, or cannot be written.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            there = "it has no config.json" if folder.is_dir() else "there is no such folder"
            raise RunError(f"{folder} is no run folder of metapeft: {there}")
        run = cls(folder, writable)
        try:
            return run._read()
        except BaseException:
            run.close()
            raise

    def log(self, step: int, **values: Any) -> None:
        """Append one row to metrics.jsonl, handed to the system at once so that it survives a kill.

        Args:
            step: the outer step.
            values: numbers, strings, lists and dicts of them; tensors of one element count as numbers.
                What is not finite becomes null.

        Raises:
            RunError: if the row cannot be written, or the run was opened for reading.
        """
        self._check_writable()
        row = json.dumps(_plain({"step": step, **values}), allow_nan=False)
        try:
            if self._metrics is not None and not _is(self._metrics, self.folder / METRICS):
                _log.warning(
                    "%s was removed or replaced while the run wrote it: it is written again", METRICS
                )
                self._rewrite(self._rows)
            if self._metrics is None:
                self.truncate(math.inf)  # drops a row that was cut short by a kill
            if self._metrics is None:
                opened = os.open(self.folder / METRICS, os.O_WRONLY | os.O_APPEND | NO_LINK)
                self._metrics = os.fdopen(opened, "a", encoding="utf-8")
            self._metrics.write(row + "\n")
            self._metrics.flush()
            self._rows.append(row)
        except OSError as error:
            raise RunError(
                f"metrics of {self.folder} cannot be written: {error.strerror or error}"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line that was cut short by a kill is left out.

        Raises:
            RunError: if any other line is not JSON, has no step, or is not what the latest checkpoint knows of it.
        """
        found = metrics.read(self.folder / METRICS)
        if self.checkpoint("latest").exists():
            known = checkpoint.said_beside(self.checkpoint("latest"))
            metrics.check(self.folder / METRICS, found, known)
        return found

    def truncate(self, step: float) -> None:
        """Drop the rows after `step`, which a resumed run will write again.

        Args:
            step: the last step that stays, that of the checkpoint from which the run goes on.

        Raises:
            RunError: if the file cannot be written, or the run was opened for reading.
        """
        self._check_writable()
        self._rewrite([json.dumps(row) for row in self.metrics() if row["step"] <= step])

    def _rewrite(self, rows: list[str]) -> None:
        self._close_metrics()
        write_atomically(self.folder / METRICS, "".join(row + "\n" for row in rows).encode())
        self._rows = list(rows)

    def save(self, name: str, tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Keep a tree of tensors and values (see `metapeft.training.runs.checkpoint.save`) as `name`: "latest", "best".

        Raises:
            RunError: if it cannot be written; the older one is untouched.
        """
        self._check_writable()
        path = self.checkpoint(name)
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{path.parent} cannot be made: {error.strerror or error}") from error
        if self._metrics is not None:
            os.fsync(
                self._metrics.fileno()
            )  # what the checkpoint knows of them outlives a power failure as it does
        checkpoint.save(path, tree, metadata, metrics.known(self._rows, (metadata or {}).get("step")))

    def load(self, name: str) -> tuple[Any, dict[str, Any]]:
        """Read checkpoint `name`: its tree and metadata; raises RunError if it is missing or damaged."""
        return checkpoint.load(self.checkpoint(name))

    def checkpoint(self, name: str) -> Path:
        """The file of checkpoint `name`, whether it is there or not."""
        return self._checkpoints / f"{name}.safetensors"

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _refuse_links(self) -> None:
        refuse_links(self.folder)
        if self._checkpoints.is_dir():
            refuse_links(self._checkpoints)

    def close(self) -> None:
        """Free the lock; a second call does nothing."""
        self._close_metrics()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> Run:
        for name in ("config", "environment"):
            path = self.folder / f"{name}.json"
            found = read_json(path)
            if not isinstance(found, dict):
                raise RunError(f"{path} is damaged: a run stores an object of JSON there")
            setattr(self, name, found)
        return self

    def _check_writable(self) -> None:
        if self._lock is None:
            raise RunError(
                f"run {self.folder} is closed, or was opened for reading: open it with writable=True"
            )

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # a row that did not get out was said when it was tried
                self._metrics.close()
            self._metrics = None


def _check_free(folder: Path) -> None:
    there = {path.name for path in folder.iterdir()}
    if "config.json" in there:
        raise RunError(f"{folder} holds a run already: resume it, or choose another folder")
    if foreign := sorted(name for name in there - _REMAINS if not is_partial(name)):
        raise RunError(f"{folder} is no run folder: it holds {foreign[0]!r}; choose a new or an empty folder")


def _is(file: TextIO, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    own = os.fstat(file.fileno())
    return os.name == "nt" or (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # tensors, numpy's scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

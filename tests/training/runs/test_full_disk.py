"""A disk that is full: one sentence of what could not be written, whichever file it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TextIO

import pytest

from metapeft.base.errors import RunError
from metapeft.training.runs.run import Run


class Full:
    """An open file that takes nothing more, and whose close fails for that too."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.fileno = file, file.fileno

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.file.close()
        self.flush()


def log_on_full_disk(folder: Path) -> None:
    with Run.create(folder, {}) as run:
        run.log(0, loss=1.0)
        assert run._metrics is not None
        run._metrics = Full(run._metrics)  # type: ignore[assignment]
        run.log(1, loss=1.0)


def test_a_row_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"metrics of .* cannot be written: No space left on device"):
        log_on_full_disk(tmp_path / "x")
    with Run.open(tmp_path / "x") as run:
        assert [row["step"] for row in run.metrics()] == [0]

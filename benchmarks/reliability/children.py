"""Children of this process that do some work, and say how it ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = -signal.SIGKILL


class Child:
    """A fork of this process that runs a function and ends; its own process group, so that a kill takes all of it.

    This process itself never differentiates: torch refuses to in forks of one that has.

    Args:
        work: what it does. said: a file for how it ended.
    """

    def __init__(self, work: Callable[[], Any], said: Path) -> None:
        self.said = said
        said.unlink(missing_ok=True)
        self.begun = time.monotonic()
        self.number = os.fork()
        if self.number == 0:
            _do(work, said)
        self.code: int | None = None

    def ended(self) -> bool:
        """Whether it has."""
        if self.code is None:
            number, status = os.waitpid(self.number, os.WNOHANG)
            if number:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, seconds: float = 600) -> int:
        """Its exit code; TimeoutError where it takes longer, and it is killed then."""
        latest = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > latest:
                self.kill()
                raise TimeoutError(f"{self.said.stem} still ran after {seconds:.0f} s")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def kill(self, with_signal: int = signal.SIGKILL) -> None:
        """Send it a signal, SIGKILL to all of its group."""
        try:
            if with_signal == signal.SIGKILL:
                os.killpg(self.number, with_signal)
            else:
                os.kill(self.number, with_signal)
        except ProcessLookupError:
            pass

    def says(self) -> dict[str, Any]:
        """What it wrote at its end: `{"error": type, "message": text}`, both None where all was well."""
        found: dict[str, Any] = json.loads(self.said.read_text(encoding="utf-8"))
        return found


def _do(work: Callable[[], Any], said: Path) -> None:
    """In the fork: work, say how it ended, and be gone."""
    code = 1
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        found: dict[str, Any] = {"error": None, "message": None}
        try:
            work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            found = {"error": type(error).__name__, "message": str(error)}
        said.write_text(json.dumps(found), encoding="utf-8")
        sys.stdout.flush()
    finally:
        os._exit(code)

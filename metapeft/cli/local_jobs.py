"""Jobs of a sweep as processes on this machine, which end with the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PARENT = "METAPEFT_ENDS_WITH"  # the number of the process whose end is that of this one
_EVERY = 0.2  # seconds


def end_with_parent() -> None:
    """End this process, as a scheduler does, once the one that started it as a job is gone; of others, nothing."""
    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal() and hasattr(os, "getppid"):
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    import signal

    while os.getppid() == parent:
        time.sleep(_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)


def run_jobs(
    commands: Mapping[str, Sequence[str]],
    logs: Path,
    parallel: int,
    minutes: float,
    done: Callable[[str, str | None], None],
) -> None:
    """Run commands of the shell, so many at once, until all have ended.

    Args:
        commands: name -> what stands behind `metapeft`. logs: a folder for what each prints.
        minutes: that one may take. done: called with the name of each that ended, and what went wrong, or None.

    All that still run are ended where this one is interrupted, and where it dies.
    """
    waiting = list(commands.items())
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                name, command = waiting.pop(0)
                running[name] = _started(name, command, logs), time.monotonic() + 60 * minutes
            time.sleep(_EVERY)
            for name, (process, latest) in list(running.items()):
                late = time.monotonic() > latest
                if process.poll() is None and not late:
                    continue
                del running[name]
                if late and process.poll() is None:
                    _end(process)
                    done(name, f"it took more than {minutes:g} minutes")
                else:
                    done(
                        name, f"it ended with exit code {process.returncode}" if process.returncode else None
                    )
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            _end(process)


def _started(name: str, command: Sequence[str], logs: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, PARENT: str(os.getpid())}
    files = [open(logs / f"{name}.{kind}", "ab") for kind in ("out", "err")]  # noqa: SIM115 (the process has them)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "metapeft", *command], stdout=files[0], stderr=files[1], env=environment
        )
    finally:
        for file in files:
            file.close()


def _end(process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""What Windows lacks is not needed: every module imports without it, and runs are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metapeft.base.files import write_atomically
from metapeft.base.machine import memory

# Modules and names that Python has on POSIX alone; libraries that others bring have their own ways around them.
WITHOUT = """
import importlib, os, pkgutil, signal, sys
import cyclopts, filelock, jinja2, matplotlib.figure, numpy, rich.progress, safetensors.torch, scipy.optimize
import scipy.stats, tensorly, torch, torch.distributed, torch.utils.data

for name in ("crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fork", "getuid", "register_at_fork", "sched_getaffinity",
             "setsid", "sysconf", "uname", "wait4"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "alarm", "setitimer"):
    delattr(signal, name)

import metapeft
count = 0
for package in ("metapeft", "theory"):
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(module.__path__, f"{package}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
            count += 1
print(count)
"""


def test_every_module_imports_without_what_windows_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


def test_files_are_written_where_folders_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "open", refused)
    write_atomically(tmp_path / "x", b"all")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"all"


def test_memory_is_taken_to_be_there_where_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, **options: str) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(Path, "read_text", missing)
    assert memory._available() == memory._UNTOLD

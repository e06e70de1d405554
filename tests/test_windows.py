"""What Windows and macOS lack is not needed: every module imports without it, and runs are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metapeft.base.files import write_atomically
from metapeft.base.machine import memory

# Modules and names that Python has on POSIX alone; libraries that others bring have their own ways around them.
WINDOWS = """
for name in ("crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fork", "getuid", "register_at_fork", "sched_getaffinity",
             "setsid", "sysconf", "uname", "wait4"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "alarm", "setitimer"):
    delattr(signal, name)
sys.platform, platform.system = "win32", lambda: "Windows"
"""
# What Linux has and macOS has not.
MACOS = """
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "pipe2", "memfd_create"):
    if hasattr(os, name):
        delattr(os, name)
sys.platform, platform.system = "darwin", lambda: "Darwin"
"""
LOADED = """
import builtins, ctypes, importlib, io, os, pkgutil, platform, signal, sys, tempfile
import cyclopts, filelock, jinja2, matplotlib.figure, numpy, rich.progress, safetensors.torch, scipy.optimize
import scipy.stats, tensorly, torch, torch.distributed, torch.utils.data
"""
# Neither has files of the kernel's, nor glibc.
NEITHER = """
opened, stated = io.open, os.stat

def here(path):
    if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc", "/sys/fs")):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return path

def refused(*given, **more):
    raise OSError("no such library")

io.open = builtins.open = lambda path, *given, **more: opened(here(path), *given, **more)
os.stat = lambda path, *given, **more: stated(here(path), *given, **more)
ctypes.CDLL = refused
"""
EVERY_MODULE = """
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
A_RUN = """
import metapeft as mp
source = torch.Generator().manual_seed(0)
data = mp.data(torch.randn(60, 4, generator=source), torch.arange(60) % 6)
sampler = mp.EpisodeSampler(data, 3, 1, 2)
learner = mp.methods.lora_ml(mp.backbones.mlp(4, 3, hidden=(8,)))
with tempfile.TemporaryDirectory() as folder:
    trainer = mp.BilevelTrainer(learner, tasks_per_step=2, progress=False)
    trainer.fit(sampler, steps=2, run_dir=f"{folder}/run")
    task = sampler[0]
    adapted = mp.load(f"{folder}/run").adapt(task.support_x, task.support_y, steps=1)
    adapted.export_peft(f"{folder}/adapter")
    print(mp.evaluate(learner, sampler, episodes=2).accuracy >= 0)
"""


@pytest.mark.parametrize(
    "system", [WINDOWS, pytest.param(MACOS, marks=pytest.mark.slow)], ids=["windows", "macos"]
)
def test_every_module_imports_and_a_run_is_kept(system: str) -> None:
    code = LOADED + system + NEITHER + EVERY_MODULE + A_RUN
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, ran = done.stdout.split()
    assert int(count) > 150
    assert ran == "True"


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

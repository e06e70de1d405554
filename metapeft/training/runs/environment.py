"""What a number was measured with: versions, commit, threads, hardware."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch

from metapeft.base.machine.processor import processor_name
from metapeft.base.version import __version__
from metapeft.updates.layers.compiled.switch import in_use


def environment() -> dict[str, Any]:
    """The software and the machine, for a record that stands beside results.

    Returns:
        `python`, `torch`, `numpy`, `metapeft`: versions; `commit` of the checkout that the code runs from,
        with `+changes` where files differ from it, None outside a checkout; `threads` of torch; `system`;
        `cpu` and `gpu`: their names; `compiled`: whether compiled kernels are in use.

    Example:
        >>> sorted(environment())
        ['commit', 'compiled', 'cpu', 'gpu', 'metapeft', 'numpy', 'python', 'system', 'threads', 'torch']
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "metapeft": __version__,
        "commit": _commit(Path(__file__).parents[2]),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "cpu": processor_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "compiled": in_use(),
    }


def _commit(package: Path) -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a checkout of this code, not one that it lies in
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None

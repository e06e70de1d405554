"""The shell as a function, and options of a small job."""

from __future__ import annotations

import subprocess
import sys


def options(pretrain, steps, sinusoid):
    sizes = ("--pretrain-steps", str(pretrain), "--steps", str(steps), "--sinusoid-steps", str(sinusoid))
    return [
        *("--width", "4", "--tasks-per-step", "1", "--episodes", "2", "--validation-episodes", "2"),
        *("--queries", "2", "--inner-lrs", "0.01", "--inner-steps", "1", *sizes, "--quiet"),
    ]


TINY = options(2, 2, 2)


def shell(*arguments, **options):
    command = [sys.executable, "-m", "metapeft", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

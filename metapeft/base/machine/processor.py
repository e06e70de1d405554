"""What the operating system says of the processor."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The processor's name, as people know it."""
    return _said("model name") or platform.processor() or platform.machine()


def processor_abilities() -> str:
    """What the processor can do, as a line that changes with it: machine code made for one may fail on another."""
    return f"{platform.machine()} {_said('flags', 'Features') or platform.processor()}"


def _said(*names: str) -> str:
    """What Linux tells of the first core under one of these names; "" where it tells nothing."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""

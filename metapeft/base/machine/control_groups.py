"""What the control groups of a process leave it of memory: limits of containers and of batch systems such as SLURM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: version -> files of the limit and of what is used now, and the name of reclaimable pages in memory.stat
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def rooms(process: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes left in each control group around the process, the innermost first; none where there are none.

    Pages of files that the system takes back when it needs them do not count as used.

    Args:
        process: its folder in /proc. mounts: where control groups are mounted.
    Source: cgroups(7); Linux's admin-guide, cgroup-v2 and cgroup-v1/memory.
    """
    found = []
    for version, folder in _groups(process, mounts):
        limit, used, reclaimable = _FILES[version]
        with contextlib.suppress(OSError, ValueError):  # no such group here, or no limit: "max"
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
            found.append(max(most - now + _statistic(folder, reclaimable), 0))
    return found


def _groups(process: Path, mounts: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of the process's groups and of all above them."""
    try:
        lines = (process / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, root = 2, mounts / "unified" if (mounts / "unified").is_dir() else mounts
        elif "memory" in controllers.split(","):
            version, root = 1, mounts / "memory"
        else:
            continue
        for group in (own := PurePosixPath(path), *own.parents):
            yield version, root / group.relative_to("/")


def _statistic(folder: Path, name: str) -> int:
    lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)

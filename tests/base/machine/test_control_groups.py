"""Limits of control groups, in the layouts of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metapeft.base.machine import control_groups as cgroups
from metapeft.base.machine import memory
from metapeft.base.machine.control_groups import rooms

FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def group(folder: Path, version: int, limit: object, used: int, reclaimable: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    most, now, name = FILES[version]
    (folder / most).write_text(f"{limit}\n")
    (folder / now).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{name} {reclaimable}\n{name}_other 7\n")


def process(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    return tmp_path / "self"


@pytest.mark.parametrize("nested", [False, True])
def test_version_2(tmp_path: Path, nested: bool) -> None:
    """A job's group within one without a limit; the files of the root group are missing."""
    mounts = tmp_path / "cgroup"
    group(mounts / "slice", 2, "max", 900)
    group(mounts / "slice" / "job", 2, 1000, 700, 50)
    path = "/slice/job/step" if nested else "/slice/job"
    assert rooms(process(tmp_path, f"0::{path}"), mounts) == [350]


def test_version_1_beside_2(tmp_path: Path) -> None:
    mounts = tmp_path / "cgroup"
    group(mounts / "memory", 1, 2**63 - 4096, 10)
    group(mounts / "memory" / "job", 1, 500, 700, 50)
    (mounts / "unified").mkdir()
    lines = ("5:devices:/", "4:cpu,memory:/job", "0::/")
    assert rooms(process(tmp_path, *lines), mounts) == [0, 2**63 - 4096 - 10]


def test_version_2_beside_1(tmp_path: Path) -> None:
    """In a hybrid layout its groups are mounted in a folder of their own."""
    mounts = tmp_path / "cgroup"
    group(mounts / "unified" / "job", 2, 800, 500)
    assert rooms(process(tmp_path, "5:devices:/", "0::/job"), mounts) == [300]


def test_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    """The path is the host's, the group itself is mounted as the root."""
    mounts = tmp_path / "cgroup"
    group(mounts, 2, 100, 40)
    assert rooms(process(tmp_path, "0::/docker/a1"), mounts) == [60]


def test_a_system_without_groups(tmp_path: Path) -> None:
    assert rooms(tmp_path / "none", tmp_path) == []


def test_the_smallest_room_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "rooms", lambda: [12_345, 2**63])
    assert memory.free_bytes(torch.device("cpu")) == 12_345

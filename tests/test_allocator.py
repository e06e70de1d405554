"""Freed memory that stays with the process is not faulted in again."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft import allocator
from metapeft.allocator import freed_memory_kept, keep_freed_memory

SCRIPT = """
import resource, sys, torch
from contextlib import nullcontext
from metapeft.allocator import freed_memory_kept, keep_freed_memory
from metapeft.memory import _resident
mode = sys.argv[1]
if mode == "for good" and not keep_freed_memory():
    print("-1 -1 -1")
    raise SystemExit
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
held = _resident("VmRSS")
with freed_memory_kept() if mode in ("a while", "for good") else nullcontext():
    faults()
    inside = faults()
print(inside, faults(), _resident("VmRSS") - held)
"""
ONCE = 16 * 2**20 * 4 / 4096  # pages of one such tensor
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")


def measured(mode: str, **variables: str) -> list[int]:
    """Page faults inside and after the scope, and resident bytes that are left of it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode],
        capture_output=True, text=True, check=True, env={**os.environ, **variables},
    )  # fmt: skip
    found = [int(word) for word in done.stdout.split()]
    if found[0] < 0:
        pytest.skip("this C library has no mallopt")
    return found


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)


@LINUX
def test_freed_memory_is_not_faulted_in_again() -> None:
    inside, after, _ = measured("for good")
    assert inside < ONCE
    assert after < ONCE  # a scope within ends nothing


@LINUX
def test_a_scope_keeps_freed_memory_and_gives_it_back() -> None:
    inside, after, left = measured("a while")
    assert inside < ONCE
    assert after > 5 * ONCE  # as without
    assert left < 16 * 2**20
    assert measured("never")[0] > 5 * ONCE


@LINUX
def test_what_the_environment_says_stays() -> None:
    assert measured("a while", MALLOC_MMAP_THRESHOLD_="1000000")[0] > 5 * ONCE
    tunables = "glibc.malloc.mmap_max=1000:glibc.malloc.tcache_count=7"
    assert measured("a while", GLIBC_TUNABLES=tunables)[0] > 5 * ONCE
    assert measured("a while", MALLOC_ARENA_MAX="2")[0] < ONCE  # says nothing of large blocks


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int]]:
    """What glibc is told."""
    found: list[dict[int, int]] = []
    monkeypatch.setattr(allocator, "_set", lambda options: found.append(options) is None)
    monkeypatch.setattr(allocator, "_for_good", False)
    return found


KEEP_THEN_LEAVE = [allocator._KEEP, allocator._LEAVE]


def test_scopes_nest(said: list[Any]) -> None:
    with freed_memory_kept():
        with freed_memory_kept():
            pass
        assert said == KEEP_THEN_LEAVE[:1]
    assert said == KEEP_THEN_LEAVE


def test_kept_for_good_inside_a_scope_stays(said: list[Any]) -> None:
    with freed_memory_kept():
        assert keep_freed_memory()
    assert allocator._LEAVE not in said


def test_training_keeps_freed_memory_also_where_it_fails(said: list[Any]) -> None:
    body = mp.backbones.mlp(1, 1, hidden=(4,))
    learner = mp.methods.maml(body, norm="running", loss=torch.nn.functional.mse_loss)
    trainer = mp.BilevelTrainer(learner, tasks_per_step=2, progress=False)
    episodes = mp.EpisodeSampler(mp.load_dataset("sinusoid", split="train"), 1, 5, 5)

    class Broken:
        def batch(self, start: int, count: int) -> Any:
            if start:
                raise OSError("the disk is gone")
            return episodes.batch(start, count)

    trainer.fit(episodes, steps=1)
    assert said == KEEP_THEN_LEAVE
    with pytest.raises(OSError, match="gone"):
        trainer.fit(Broken(), steps=2)
    assert said == KEEP_THEN_LEAVE * 2

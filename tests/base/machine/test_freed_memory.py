"""Freed memory stays with the process, for good or for a while."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.machine import freed_memory as allocator
from metapeft.base.machine.freed_memory import freed_memory_kept, keep_freed_memory

SCRIPT = """
import ctypes, sys, torch
from contextlib import nullcontext
from metapeft.base.machine.freed_memory import freed_memory_kept, keep_freed_memory
from metapeft.base.machine.memory import _resident
mode = sys.argv[1]
if mode == "for good":
    keep_freed_memory()
def left():
    torch.ones(16 * 2**20)
    return _resident("VmRSS") - held
torch.ones(16)
held = _resident("VmRSS")
with freed_memory_kept() if mode in ("a while", "for good") else nullcontext():
    inside = left()
end = _resident("VmRSS") - held
again = left()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def smaller(count):
    before = _resident("VmRSS")
    blocks = [libc.malloc(2**24) for _ in range(count)]
    for block in blocks:
        libc.memset(block, 1, 2**24)
    for block in blocks:
        libc.free(block)
    return _resident("VmRSS") - before
print(inside, end, again, smaller(3), smaller(8))
"""
TENSOR = 16 * 2**20 * 4
MUCH, LITTLE = 0.9 * TENSOR, 0.3 * TENSOR
GLIBC = pytest.mark.skipif(allocator._libc("mallopt") is None, reason="the setting is glibc's")


def left(mode: str, **variables: str) -> list[int]:
    """Resident bytes after a large tensor was freed: inside the scope, at its end, when one came and went again; then
    what three blocks of a quarter of it leave, and eight."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode],
        capture_output=True, text=True, check=True, env={**os.environ, **variables},
    )  # fmt: skip
    return [int(word) for word in done.stdout.split()]


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)


@GLIBC
def test_freed_memory_is_kept_for_good_also_after_a_scope_within() -> None:
    assert min(left("for good")[:3]) > MUCH
    assert max(left("never")[:3]) < LITTLE


@GLIBC
def test_a_scope_keeps_freed_memory_and_gives_it_back() -> None:
    inside, end, again, few, many = left("a while")
    assert inside > MUCH
    assert end < LITTLE
    assert again < LITTLE
    assert few > 0.6 * TENSOR  # smaller blocks stay, as glibc by itself comes to do,
    assert many < LITTLE  # as long as there are not many


@pytest.mark.slow
@GLIBC
def test_what_the_environment_says_stays() -> None:
    assert left("a while", MALLOC_MMAP_THRESHOLD_="1000000")[0] < LITTLE
    tunables = "glibc.malloc.mmap_max=1000:glibc.malloc.tcache_count=7"
    assert left("a while", GLIBC_TUNABLES=tunables)[0] < LITTLE
    assert left("a while", MALLOC_ARENA_MAX="2")[0] > MUCH  # says nothing of large blocks


@GLIBC
def test_the_environment_holds_for_good_too() -> None:
    assert max(left("for good", MALLOC_MMAP_THRESHOLD_="1000000")[:3]) < LITTLE


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


def test_what_is_said_later_does_not_keep_a_scope_from_its_end(
    said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with freed_memory_kept():
        monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")  # read by glibc at the start only
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

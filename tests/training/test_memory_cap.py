"""A stated cap against the memory that the system says a training takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from metapeft.base.machine.memory import free_bytes, peak_bytes

SCRIPT = """
import sys, torch
from pathlib import Path
import metapeft as mp
from metapeft.base.machine.memory import _resident, held_bytes

torch.set_num_threads(1)
learner = mp.methods.maml(mp.backbones.conv4(ways=5, channels=1, width=32, size=28, seed=0), norm="running")
images = torch.randint(0, 255, (400, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
data = mp.ImageData(images, torch.arange(400) // 20, [str(number) for number in range(20)])
sampler = mp.EpisodeSampler(data, 5, 1, 15, seed=0)
cap = held_bytes(torch.device("cpu")) + int(sys.argv[1]) * 2**20
Path("/proc/self/clear_refs").write_text("5")  # the highest from here on
trainer = mp.BilevelTrainer(learner, tasks_per_step=16, progress=False, memory=cap)
trainer.fit(sampler, 6, sampler, validate_every=3, validation_episodes=16)
print(trainer.gradient.chunking.chunk, _resident("VmHWM") / cap)
"""


@pytest.mark.slow
@pytest.mark.parametrize("room", [350, 450])
def test_a_training_keeps_to_its_cap(room: int) -> None:
    """In a process of its own, whose first step leaves more behind than later ones."""
    if peak_bytes(lambda: None, torch.device("cpu")) is None:
        pytest.skip("this system does not tell the peak memory of a process")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(room)], capture_output=True, text=True, check=True
    )
    chunk, share = done.stdout.split()
    assert 2 <= int(chunk) < 16
    assert float(share) <= 1.05


def test_what_the_c_library_holds_free_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[None] = []
    monkeypatch.setattr("metapeft.base.machine.freed_memory.give_back", lambda: given.append(None))
    assert free_bytes(torch.device("cpu")) > 0
    assert given

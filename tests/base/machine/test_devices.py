"""Which devices this process can use, and whether they compute in bfloat16."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist

import metapeft as mp
from metapeft.base.machine import devices as placement
from metapeft.base.machine import precision
from metapeft.base.machine import processes as distributed
from metapeft.base.machine.devices import usable
from metapeft.base.machine.processes import Processes
from tests.training.helpers import learner

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, neighbours: int = 1, own: int = 0) -> None:
    """A machine with GPUs, as torch would tell of it to the process whose GPU is number `own`."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CUDA)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: own)
    monkeypatch.setattr(placement, "processes", lambda: Processes(own, neighbours, neighbours))


@pytest.mark.parametrize(
    ("gpus", "neighbours", "own", "device"),
    [
        (0, 1, 0, "cpu"),
        (0, 2, 1, CPU),
        (1, 1, 0, "cuda"),
        (2, 1, 0, "cuda:1"),
        (2, 2, 1, CUDA),
        (2, 2, 1, "cuda:1"),
    ],
)
def test_usable(gpus: int, neighbours: int, own: int, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus, neighbours, own)
    assert usable(device) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "neighbours", "device", "sentence"),
    [
        (0, 1, "cuda", "device='cuda': allowed on this machine is 'cpu'; torch .* sees no GPU"),
        (0, 1, torch.device("meta"), "device='meta': allowed on this machine is 'cpu'"),
        (1, 1, "meta", "device='meta': allowed on this machine are 'cpu', 'cuda', 'cuda:0'$"),
        (2, 1, "gpu", "device='gpu': allowed on this machine are 'cpu', 'cuda', 'cuda:0', 'cuda:1'$"),
        (1, 1, "cuda:1", "device='cuda:1': allowed on this machine are 'cpu', 'cuda', 'cuda:0'$"),
        (1, 1, "mps", "device='mps': allowed on this machine are 'cpu', 'cuda', 'cuda:0'$"),
        (
            1,
            2,
            "cuda",
            "device='cuda': 2 processes on this machine each need a GPU of their own, of which it has 1",
        ),
        (2, 2, "cuda:1", "device='cuda:1': 2 processes .* say 'cuda' for that of the local rank"),
    ],
)
def test_refused(
    gpus: int, neighbours: int, device: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus, neighbours)
    with pytest.raises(ValueError, match=sentence):
        usable(device)


def test_the_trainer_refuses_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0)
    with pytest.raises(ValueError, match="device='cuda': allowed"):
        mp.BilevelTrainer(learner(), device="cuda")


@pytest.mark.parametrize(("local", "chosen"), [("0", [0]), ("1", [])])
def test_more_processes_than_gpus_can_still_train_on_the_cpu(
    local: str, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setenv("LOCAL_RANK", local)
    distributed._join()
    assert set_to == chosen


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "arm64", "bf16": True}, True),
        ({"architecture": "arm64", "bf16": False}, False),
        ({"architecture": "s390x"}, None),
    ],
)
def test_the_cpu_is_asked_for_bfloat16(
    flags: dict[str, Any], found: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert precision.has_bfloat16(CPU) is found


@pytest.mark.parametrize(("family", "found"), [("AVX2", False), ("AVX512", None)])
def test_an_older_torch_knows_the_family(
    family: str, found: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: family)
    assert precision.has_bfloat16(CPU) is found


def test_a_gpu_is_asked_for_bfloat16_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert precision.has_bfloat16(CUDA) is False
    assert precision.has_bfloat16(torch.device("mps")) is None

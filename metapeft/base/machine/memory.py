"""Memory of a device: what is free, what a computation takes at its peak, and whether an error means too little.

On CUDA torch's allocator knows. On the CPU it is the resident memory of the process, which Linux records with its
highest value, and lets a process reset; elsewhere the peak is unknown.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from metapeft.base.machine import control_groups, freed_memory

log = logging.getLogger("metapeft")
Found = TypeVar("Found")
_PROCESS = Path("/proc/self")
_UNTOLD = 4 * 2**30  # taken to be there where the system does not tell; `memory=` says better
# What has no class of its own: the CPU's allocator, oneDNN without room for its buffers, cuBLAS, cuDNN, the driver.
_SAID = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "could not create a primitive",
    "could not create a memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still take: free on the GPU, or what the system and its control groups leave.

    Example:
        >>> free_bytes(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    freed_memory.give_back()  # what the C library holds free is free
    return min([_available(), *control_groups.rooms()])


def held_bytes(device: torch.device) -> int:
    """Bytes that the process holds now; on the CPU free pages of the C library are given back first."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    freed_memory.give_back()
    return _resident("VmRSS") or 0


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that `work()` takes at its peak beyond what is held before; None where the system doesn't tell.

    Example:
        >>> found = peak_bytes(lambda: torch.ones(5_000_000).sum(), torch.device("cpu"))
        >>> found is None or 19_000_000 < found < 30_000_000
        True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = held_bytes(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - held
    held = held_bytes(device)
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    except OSError:
        held = 0
    work()
    highest = _resident("VmHWM")
    return max(highest - held, 0) if held and highest else None


def highest_bytes(device: torch.device) -> int | None:
    """Bytes that the process held at most since the last call, or the last `peak_bytes`; None where nobody tells.

    Example:
        >>> found = highest_bytes(torch.device("cpu"))
        >>> found is None or found > 1_000_000
        True
    """
    if device.type == "cuda":
        found = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return found
    highest = _resident("VmHWM")
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5", encoding="utf-8")
    return highest


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on any device.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def refuse_too_little(error: BaseException, sentence: str) -> None:
    """Raise a MemoryError with a sentence where an exception says that an allocation failed.

    Example:
        >>> refuse_too_little(MemoryError(), "out of memory with a group of 64 images: take a smaller one")
        Traceback (most recent call last):
        MemoryError: out of memory with a group of 64 images: take a smaller one
    """
    if is_out_of_memory(error):
        raise MemoryError(sentence) from error


def while_it_fits(work: Callable[[int], Found], size: int, device: torch.device, what: str) -> Found:
    """`work(size)`; where memory is too little, it is done again with half the size, and that is said.

    Args:
        work: does all of it in pieces of a size. what: a piece consists of, in the plural.

    Raises:
        MemoryError: too little for a size of 1.

    Example:
        >>> while_it_fits(lambda size: size, 8, torch.device("cpu"), "episodes")
        8
    """
    while True:
        try:
            return work(size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise MemoryError(
                    f"out of memory with one of the {what} in a forward: take smaller ones"
                ) from error
        log.warning("out of memory with %d %s in one forward, now %d", size, what, size // 2)
        size //= 2
        release(device)


def release(device: torch.device) -> None:
    """Give back what a failed computation left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: all that there is
        if not hasattr(os, "sysconf"):  # Windows
            return _UNTOLD
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _resident(field: str) -> int | None:
    """`VmRSS`: bytes resident now; `VmHWM`: at most since the last reset."""
    try:
        lines = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)

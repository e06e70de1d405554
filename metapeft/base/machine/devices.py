"""Where a model is run and how exactly: its device, the type of its numbers, the type of its forwards."""

from __future__ import annotations

from typing import Any

import torch

from metapeft.base.machine.precision import note_emulated
from metapeft.base.machine.processes import processes


def usable(device: torch.device | str) -> torch.device:
    """The device, if this process can use it.

    Where torchrun started several processes, `"cuda"` is the GPU of the local rank.

    Raises:
        ValueError: a device that torch does not know, that this machine lacks, or that is another process's.

    Example:
        >>> usable("cpu")
        device(type='cpu')
    """
    together = processes()  # first, for it says which GPU is this process's own
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if accelerator is None else torch.accelerator.device_count()
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device={str(device)!r}: {_allowed(accelerator, count)}") from None
    if found.type == "cpu" and not found.index:
        return found
    if accelerator is None or found.type != accelerator.type or (found.index or 0) >= count:
        raise ValueError(f"device={str(device)!r}: {_allowed(accelerator, count)}")
    if together.neighbours > 1:
        own = found.index is None or found.type != "cuda" or found.index == torch.cuda.current_device()
        if together.neighbours > count or not own:
            raise ValueError(
                f"device={str(device)!r}: {together.neighbours} processes on this machine each need a GPU of their "
                f"own, of which it has {count}: say 'cuda' for that of the local rank, and start no more processes"
            )
    return found


def options(device: str | None, dtype: str | None, autocast: str | None) -> dict[str, Any]:
    """The names that the shell takes, as keywords of `Learner` and `mp.pretrain`; None stays None.

    Raises:
        ValueError: as `usable`.

    Example:
        >>> options("cpu", "float64", None)
        {'device': device(type='cpu'), 'dtype': torch.float64, 'autocast': None}
    """
    return {
        "device": None if device is None else usable(device),
        "dtype": None if dtype is None else getattr(torch, dtype),
        "autocast": None if autocast is None else getattr(torch, autocast),
    }


def ask(device: str | None, autocast: str | None) -> None:
    """Ask the machine for what a run needs, before it starts; that bfloat16 is only emulated is said.

    Raises:
        ValueError: as `usable`.

    Example:
        >>> ask("cpu", None)
    """
    found = usable("cpu" if device is None else device)
    if autocast is not None:
        note_emulated(found)


def _allowed(accelerator: torch.device | None, count: int) -> str:
    if accelerator is None:
        return (
            f"allowed on this machine is 'cpu'; torch {torch.__version__} sees no GPU (a build for CPUs, no driver, "
            "or CUDA_VISIBLE_DEVICES hides it)"
        )
    names = ["cpu", accelerator.type, *[f"{accelerator.type}:{index}" for index in range(count)]]
    return f"allowed on this machine are {', '.join(map(repr, names))}"

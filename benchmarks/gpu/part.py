"""A part of the check: what it is called, what it runs, and what becomes of its errors."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


class Clock:
    """How much of the time is left.

    Args:
        limit: seconds from now.
    """

    def __init__(self, limit: float) -> None:
        self.end = time.monotonic() + limit

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass(frozen=True)
class Context:
    """Where and how large a part runs, and what time is left."""

    device: torch.device
    quick: bool
    clock: Clock


@dataclass(frozen=True)
class Part:
    """A name, and a function that returns rows, each with `"passed"` and what it measured."""

    name: str
    run: Callable[[Context], list[dict[str, Any]]]


def ran(part: Part, device: torch.device, quick: bool, clock: Clock) -> dict[str, Any]:
    """The rows of a part; an exception becomes its `"error"`, with the place that raised it."""
    if clock.left <= 0:
        return {"passed": False, "error": "not run: no time was left", "rows": []}
    try:
        rows = part.run(Context(device, quick, clock))
        return {"passed": bool(rows) and all(row["passed"] for row in rows), "rows": rows}
    except Exception as error:
        return {"passed": False, "error": described(error), "rows": []}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def row(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One row; an exception is named in it and does not end the others."""
    try:
        return {"name": name, "passed": True, **run()}
    except Exception as error:
        return {"name": name, "passed": False, "error": described(error)}


def described(error: Exception) -> str:
    """An error in one line, with the last line of code that it came from.

    Example:
        >>> described(ValueError("no"))
        'ValueError: no'
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


def wait(device: torch.device) -> None:
    """Until the device has done all that was given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Callable[[], Any], device: torch.device, repeats: int, warm: int = 2) -> float:
    """Median time of a step, the device's work included."""
    for _ in range(warm):
        step()
    times = []
    for _ in range(repeats):
        wait(device)
        begun = time.perf_counter()
        step()
        wait(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference of two sets of tensors of the same names, over the largest number of the expected ones."""
    if found.keys() != expected.keys():
        raise ValueError(f"names differ: {sorted(found.keys() ^ expected.keys())}")
    largest = max(float(value.detach().abs().max()) for value in expected.values())
    apart = max(
        float((found[name].detach().cpu().double() - value.detach().cpu().double()).abs().max())
        for name, value in expected.items()
    )
    return apart / max(largest, 1e-300)

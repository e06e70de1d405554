"""Calls into the library: sizes, pointers, memory, and tensors as it takes them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metapeft.updates.layers.compiled.switch import loaded

#: types of numbers that the kernels are compiled for
DTYPES = (torch.float32, torch.float64)
#: `TERMS` of shape.hpp: ranks are filled up to multiples of it
TERMS = 4

_NAMES = (
    "tasks",
    "images",
    "channels",
    "outputs",
    "height",
    "width",
    "terms",
    "kernels",
    "threads",
    "reference",
)


class Sizes(ctypes.Structure):
    """`struct Sizes` of shape.hpp."""

    _fields_ = [(name, ctypes.c_int64) for name in _NAMES]


def sizes(
    x: Tensor, tasks: int, outputs: int, terms: int, kernels: int, reference: int | None = None
) -> Sizes:
    """Of rows x `(tasks * images, C, H, W)`, on as many threads as torch has; `reference`: None for all images."""
    rows, channels, height, width = x.shape
    threads = torch.get_num_threads()
    images = rows // tasks
    reference = images if reference is None else reference
    return Sizes(tasks, images, channels, outputs, height, width, terms, kernels, threads, reference)


def call(
    name: str, size: Sizes, dtype: torch.dtype, *tensors: Tensor | None, memory: str | None = "memory"
) -> None:
    """Run a function of the library; None is NULL. Its memory comes from torch, so that too little is said as ever.

    Args:
        memory: the function that says how much of it there has to be; None where it takes none.
    """
    given = tensors
    if memory is not None:
        counted = _function(memory, dtype)(ctypes.byref(size))
        kind = torch.float32 if dtype == torch.bfloat16 else dtype
        given = (
            torch.empty(counted, dtype=kind, device="cpu"),
            *tensors,
        )  # whatever torch's default device is
    pointers = [None if value is None else ctypes.c_void_p(value.data_ptr()) for value in given]
    _function(name, dtype)(ctypes.byref(size), *pointers)


@cache
def lanes(dtype: torch.dtype) -> int:
    """Numbers in a vector register: numbers of channels have to be multiples of it."""
    return int(_function("lanes", dtype)())


@cache
def _function(name: str, dtype: torch.dtype) -> ctypes._FuncPointer:
    found = loaded()[f"{name}_{str(dtype).removeprefix('torch.')}"]
    found.restype = ctypes.c_int64 if name.endswith(("memory", "lanes")) else None
    return found


def has_tangent(value: Tensor) -> bool:
    """Whether it carries a tangent of torch's forward mode."""
    unpack: Callable[[Tensor], Any] = forward_ad.unpack_dual
    return unpack(value).tangent is not None


def in_rows(x: Tensor) -> Tensor:
    """`(rows, C, H, W)` with its channels next to each other in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def pooled_rows(x: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Not filled: what comes of `x` `(rows, C, H, W)` after a 2x2 pooling, channels next to each other in memory."""
    rows, _, height, width = x.shape
    return x.new_empty((rows, height // 2, width // 2, channels), dtype=dtype).permute(0, 3, 1, 2)


def piece_sums(x: Tensor, size: Sizes, *shape: int) -> Tensor:
    """Not filled: `(T, pieces, *shape)` in double, sums of the images that one thread has of a task.

    Example:
        >>> piece_sums(torch.ones(1), Sizes(tasks=4, images=3, threads=8), 5).shape
        torch.Size([4, 2, 5])
    """
    pieces = min(size.threads // math.gcd(size.threads, size.tasks), size.images)  # as shape.hpp cuts tasks
    return torch.empty(size.tasks, pieces, *shape, dtype=torch.float64, device=x.device)

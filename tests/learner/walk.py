"""The way of a batch through a call, traced: which functions of which files it enters, in the order of first entry.

A function is entered where another file of the package calls it with part of the batch among its arguments: an object
that holds the batch's tensors, or a tensor with its T tasks. What a loop repeats counts once. Properties, and lambdas
(which belong to the function that makes them), are no entries.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

import metapeft

PACKAGE = f"{Path(metapeft.__file__).parent}/"
TASKS = 7  # the first axis of the batch's tensors, and of no others


def carries(value: Any, depth: int = 4) -> bool:
    """Whether a value holds tensors of the batch."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and value.shape[0] == TASKS
    if depth == 0 or isinstance(value, type):
        return False
    if isinstance(value, Mapping):
        return any(carries(item, depth - 1) for item in value.values())
    if isinstance(value, list | tuple):
        return any(carries(item, depth - 1) for item in value)
    if dataclasses.is_dataclass(value):
        return any(carries(getattr(value, field.name), depth - 1) for field in dataclasses.fields(value))
    return False


def file_of(frame: FrameType | None) -> str:
    """The file of the package that a frame, or the nearest one that called it, is in; empty where there is none."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return frame.f_code.co_filename.removeprefix(PACKAGE)
        frame = frame.f_back
    return ""


def is_property(frame: FrameType) -> bool:
    owner = type(frame.f_locals.get("self"))
    return isinstance(getattr(owner, frame.f_code.co_name, None), property | cached_property)


def entries(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """(file, function) in the order in which a call first enters them."""
    found: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_name[0] == "<":
            return
        entry = code.co_filename.removeprefix(PACKAGE), code.co_qualname.replace(".<locals>", "")
        if entry in found or entry[0] == file_of(frame.f_back) or is_property(frame):
            return
        if any(map(carries, frame.f_locals.values())):
            found[entry] = None

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(found)

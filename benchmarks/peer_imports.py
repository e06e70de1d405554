"""Importing peers that do not import by themselves beside a torch without CUDA."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """The torchvision module, importable beside a torch that was built without CUDA.

    Its wheels are built for CUDA. Where their compiled half cannot be loaded, two operators stay undeclared,
    and the import fails at the line that describes their shapes; declaring them is enough for all that is
    written in Python.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    return importlib.import_module("torchvision")


def import_learn2learn() -> ModuleType:
    """The learn2learn module, which needs torchvision, and gym, which says on import that it has reached its end."""
    import_torchvision()
    with contextlib.redirect_stderr(io.StringIO()):
        return importlib.import_module("learn2learn")

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


def import_torchmeta() -> ModuleType:
    """The torchmeta module, which asks for torch<1.10, with three repairs at run time.

    Two functions of torchvision that are gone (they serve its downloads from Google Drive), and `__getitems__` of its
    `SubsetTask`, without which newer torch refuses a subset that has a `__getitem__` of its own.
    """
    import_torchvision()
    utils = importlib.import_module("torchvision.datasets.utils")

    def gone(*_: object, **__: object) -> None:
        raise RuntimeError("torchmeta's downloads from Google Drive need torchvision<0.13")

    for name in ("_get_confirm_token", "_save_response_content"):
        if not hasattr(utils, name):
            setattr(utils, name, gone)
    module = importlib.import_module("torchmeta")
    task = importlib.import_module("torchmeta.utils.data.task")
    if "__getitems__" not in vars(task.SubsetTask):
        task.SubsetTask.__getitems__ = lambda self, places: [self[place] for place in places]
    return module

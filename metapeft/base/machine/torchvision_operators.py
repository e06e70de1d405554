"""torchvision beside a torch that was built without CUDA: timm, and transformers where it is installed, import it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """The torchvision module, importable beside a torch that was built without CUDA; call it before `import timm`.

    The wheels of the package index are built for CUDA. Where their compiled half cannot be loaded, two operators stay
    undeclared, and the import fails at the line that describes their shapes ("operator torchvision::nms does not
    exist"); declaring them is enough for all that is written in Python.

    Raises:
        ImportError: torchvision is not installed.

    Example:
        >>> import metapeft as mp
        >>> torchvision = mp.import_torchvision()  # doctest: +SKIP
        >>> import timm  # doctest: +SKIP
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


def help_torchvision() -> None:
    """Before an import of transformers or PEFT, which fails where torchvision is installed and cannot be imported."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is not None:
        import_torchvision()

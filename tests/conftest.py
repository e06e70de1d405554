"""Fixtures that several test folders share."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


def real_data(folder: str) -> Path:
    """Return `$METAPEFT_DATA/folder`, or skip the test with a sentence that says how to get it."""
    root = os.environ.get("METAPEFT_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"set METAPEFT_DATA to the folder that holds {folder}/, laid out as README.md says")
    return Path(root) / folder


@pytest.fixture
def omniglot_folder() -> Path:
    """The folder of real Omniglot in torchvision's layout."""
    return real_data("omniglot-py")


@pytest.fixture
def miniimagenet_folder() -> Path:
    """The folder of real miniImageNet: images/ and three CSV files."""
    return real_data("miniimagenet")


def import_peer(name: str) -> ModuleType:
    """Import a peer library, or skip the test with the commands that install it."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(
            f"needs {name}: install requirements-peers.txt, then requirements-peers-nodeps.txt, as they say"
        )
    return importlib.import_module(name)


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """The torchvision module, importable beside a torch that was built without CUDA.

    Its wheels are built for CUDA. Where their compiled half cannot be loaded, two operators stay undeclared,
    and the import fails at the line that describes their shapes; declaring them is enough for all that is
    written in Python.
    """
    try:
        return import_peer("torchvision")
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


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:
    """The timm module, which requires torchvision."""
    return import_peer("timm")

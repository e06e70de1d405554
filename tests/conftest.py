"""Fixtures that several test folders share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.peer_imports import import_torchvision


def real_data(folder: str) -> Path:
    """Return `$METAPEFT_DATA/folder`, or skip the test with a sentence that says how to get it."""
    root = os.environ.get("METAPEFT_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(
            f"set METAPEFT_DATA to the folder that holds {folder}/: README.md, 'Real data', says where it comes from"
        )
    return Path(root) / folder


@pytest.fixture
def omniglot_folder() -> Path:
    """The folder of real Omniglot in torchvision's layout."""
    return real_data("omniglot-py")


@pytest.fixture
def miniimagenet_folder() -> Path:
    """The folder of real miniImageNet: images/ and three CSV files."""
    return real_data("miniimagenet")


def require_peer(name: str) -> None:
    """Skip the test, with the commands that install a peer library, where it is not there."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(
            f"needs {name}: install requirements-peers.txt, then requirements-peers-nodeps.txt, as they say"
        )


def import_peer(name: str) -> ModuleType:
    """Import a peer library, or skip the test."""
    require_peer(name)
    return importlib.import_module(name)


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """The torchvision module, helped to import beside a torch without CUDA."""
    require_peer("torchvision")
    return import_torchvision()


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:
    """The timm module, which requires torchvision."""
    return import_peer("timm")

"""Fixtures that several test folders share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from metapeft.base.machine.torchvision_operators import import_torchvision
from tests.of_float32 import OF_FLOAT32

# of the library's own calls, which a user may make inside `torch.no_grad()`; what a test computes stays outside
_CALLS = {
    "metapeft.hypergradients.problem": ("hypergradient", "Engine.__call__"),
    "metapeft.inner.loop": ("solve",),
    "metapeft.learner.learner": ("Learner.hypergradient", "Learner.adapt_many"),
    "metapeft.training.calibration": ("calibrate",),
    "metapeft.training.center": ("fit_center",),
    "metapeft.training.evaluation": ("evaluate",),
    "metapeft.training.pretraining": ("pretrain",),
    "metapeft.training.trainer": ("BilevelTrainer.fit", "BilevelTrainer.resume"),
    "metapeft.training.tuning": ("tune",),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """States of torch that belong to the whole process, and that a user may have changed: see `.ci/full`."""
    group = parser.getgroup("torch's global state")
    group.addoption("--default-dtype", help="a type by name, such as float64, for torch.set_default_dtype")
    group.addoption(
        "--no-grad", action="store_true", help="the library's calls happen inside torch.no_grad()"
    )
    group.addoption("--deterministic", action="store_true", help="torch.use_deterministic_algorithms(True)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--default-dtype"):
        torch.set_default_dtype(getattr(torch, config.getoption("--default-dtype")))
    if config.getoption("--deterministic"):
        torch.use_deterministic_algorithms(True)
    if config.getoption("--no-grad"):
        for module, names in _CALLS.items():
            for name in names:
                owner: Any = importlib.import_module(module)
                *path, last = name.split(".")
                for part in path:
                    owner = getattr(owner, part)
                setattr(owner, last, torch.no_grad()(getattr(owner, last)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--default-dtype"):
        return
    for item in items:
        file = item.path.relative_to(config.rootpath).as_posix()
        if (
            getattr(item, "originalname", item.name) in OF_FLOAT32.get(file, ())
            or file == "tests/test_global_state.py"
        ):
            item.add_marker(pytest.mark.skip(reason="about float32, or what is drawn in it"))


def real_data(folder: str) -> Path:
    """Return `$METAPEFT_DATA/folder`, or skip the test with a sentence that says how to get it."""
    root = os.environ.get("METAPEFT_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(
            f"set METAPEFT_DATA to the folder that holds {folder}/: docs/data.md says where it comes from"
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

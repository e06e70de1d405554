"""Importing peers that do not import by themselves beside a torch without CUDA."""

from __future__ import annotations

import contextlib
import importlib
import io
from types import ModuleType

from metapeft.base.machine.torchvision_operators import import_torchvision


def import_learn2learn() -> ModuleType:
    """The learn2learn module, which needs torchvision, and gym, which says on import that it has reached its end."""
    import_torchvision()
    with contextlib.redirect_stderr(io.StringIO()):
        return importlib.import_module("learn2learn")

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

"""torchvision beside a torch without CUDA: a module that fails as its wheels do there, until it is helped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIKE_TORCHVISION = """
import torch
from torchvision import operators
"""
OPERATORS = """
import torch

@torch.library.register_fake("torchvision::nms")
def fake(dets, scores, iou_threshold):
    return dets
"""
CODE = """
import importlib, sys
import metapeft as mp
from metapeft.base.machine.torchvision_operators import help_torchvision

try:
    import torchvision
except RuntimeError as error:
    print("operator torchvision::nms does not exist" in str(error))
help_torchvision()
print("torchvision.operators" in sys.modules, mp.import_torchvision() is sys.modules["torchvision"])
"""


def test_it_imports_once_it_is_helped(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(LIKE_TORCHVISION)
    (tmp_path / "torchvision" / "operators.py").write_text(OPERATORS)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CODE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "True"]


def test_other_errors_stay(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('no room')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import metapeft as mp; mp.import_torchvision()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RuntimeError: no room" in done.stderr

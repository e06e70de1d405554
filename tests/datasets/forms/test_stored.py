"""A store in the making: whole or not at all, and nothing stays of one whose process was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metapeft.base.errors import DataError
from metapeft.base.files import is_partial
from metapeft.datasets.forms import stored

KILLED = """
import os, signal, sys
from pathlib import Path
from metapeft.datasets.forms import stored

with stored.made(Path(sys.argv[1]), "miniimagenet") as writer:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_import_left_is_removed_by_the_next(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode < 0
    left = list(tmp_path.iterdir())
    assert [is_partial(path.name, stored.FOLDER) for path in left] == [True]
    with stored.made(tmp_path, "miniimagenet") as writer:
        writer.add("train", ["a"], [0], 8, [np.zeros((1, 3, 8, 8), np.uint8)])
        assert not left[0].exists()
    assert [path.name for path in tmp_path.iterdir()] == [stored.FOLDER]


def test_another_import_may_be_quicker(tmp_path: Path) -> None:
    def raced() -> None:
        with stored.made(tmp_path, "miniimagenet"):
            (tmp_path / stored.FOLDER).mkdir()
            (tmp_path / stored.FOLDER / "train.npy").touch()

    with pytest.raises(DataError, match="already: another process was quicker"):
        raced()
    assert [path.name for path in tmp_path.iterdir()] == [stored.FOLDER]

"""Every reader on damaged files: a sentence, or the value of before; no traceback, hang, gigabyte or code that runs.

Of files that the library wrote, any change is seen. Of files of others (pictures, tables, foreign adapters, options) a
change may be a legal one: there a value is an answer too, and only a crash is none.
"""

from __future__ import annotations

import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metapeft.base.errors import DataError, RunError
from tests.damaged_readers import READERS, Reader
from tests.mutations import mutated

EACH, QUICK = 260, 12  # mutations of each file
SLOWEST = 5.0  # seconds
LARGEST = 2**30  # bytes more than before


def canonical(value: Any) -> Any:
    """A value that can be compared, bits and all."""
    if isinstance(value, torch.Tensor):
        return (
            str(value.dtype),
            tuple(value.shape),
            value.detach().flatten().contiguous().view(torch.uint8).tolist(),
        )
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return repr(value)


def outcome(reader: Reader, folder: Path, expected: Any) -> str:
    """`"refused"`, `"equal"` or `"other"`; fails for anything else."""
    began = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of readers of others, about tags that they do not know
            found = canonical(reader.read(folder))
    except (RunError, DataError, ValueError) as error:
        refusal: Exception | None = error
        answer = "refused"
    else:
        refusal, answer = None, "equal" if found == expected else "other"
    if refusal is not None:
        assert type(refusal) in (RunError, DataError, ValueError), repr(refusal)
        assert len(str(refusal)) > 20, refusal
        assert Path(reader.file).name.split("*")[0] in str(refusal) or folder.name in str(refusal), refusal
    assert time.monotonic() - began < SLOWEST
    return answer


def damage(
    name: str, count: int, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, int]:
    reader = READERS[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reader.make(tmp_path)
    (file,) = tmp_path.glob(reader.file)
    whole = file.read_bytes()
    expected = canonical(reader.read(tmp_path))
    assert canonical(reader.read(tmp_path)) == expected
    answers = {"refused": 0, "equal": 0, "other": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(first, first + count):
        file.write_bytes(mutated(whole, seed))
        answer = outcome(reader, tmp_path, expected)
        answers[answer] += 1
        assert answer != "other" or not reader.own, f"seed {seed}: a changed value was taken"
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < LARGEST
    return answers


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_or_gives_the_same_value(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(name, QUICK, 0, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = damage(name, EACH, 1000, tmp_path, monkeypatch)
    # a store is made again; most of a small HDF5 file is space that nothing reads, and the rest pixels: 5 and 9 were
    # refused in two environments
    assert answers["refused"] > {"store": -1, "hdf5": 1}.get(name, EACH // 4)


def test_there_are_enough_of_them() -> None:
    assert len(READERS) * EACH >= 5000

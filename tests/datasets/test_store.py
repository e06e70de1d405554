"""The cache of decoded images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from metapeft.base.errors import DataError
from metapeft.base.files import partial_of
from metapeft.datasets import store

CONTENT = np.arange(5 * 12, dtype=np.uint8).reshape(5, 1, 3, 4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "metapeft"


def counted() -> tuple[list[int], Callable[[], Iterator[np.ndarray]]]:
    calls: list[int] = []

    def chunks() -> Iterator[np.ndarray]:
        calls.append(1)
        yield CONTENT[:2]
        yield CONTENT[2:]

    return calls, chunks


def test_decoded_once_then_mapped(cache: Path) -> None:
    calls, chunks = counted()
    for _ in range(3):
        found = store.cached_images("x", ["a", 1], CONTENT.shape, chunks)
        assert np.array_equal(found, CONTENT)
    assert len(calls) == 1
    assert isinstance(found, np.memmap)
    assert [file.suffix for file in cache.iterdir()] == [".npy"]
    found[0] = 0  # copy on write: the file is not changed
    assert np.array_equal(store.cached_images("x", ["a", 1], CONTENT.shape, chunks), CONTENT)
    store.cached_images("x", ["b", 1], CONTENT.shape, chunks)
    assert len(calls) == 2


def test_a_failure_on_the_way_leaves_nothing_behind(cache: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield CONTENT[:2]
        raise DataError("the third image is no whole image")

    with pytest.raises(DataError, match="the third image"):
        store.cached_images("x", "a", CONTENT.shape, broken)
    assert not list(cache.iterdir())


def test_an_unwritable_cache_is_gone_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _, chunks = counted()
    assert np.array_equal(store.cached_images("x", "a", CONTENT.shape, chunks), CONTENT)
    assert "cannot use the cache" in caplog.text


def test_a_full_disk_is_gone_without(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    _, chunks = counted()
    assert np.array_equal(store.cached_images("x", "a", CONTENT.shape, chunks), CONTENT)
    assert "No space left on device" in caplog.text
    assert not list(cache.iterdir())


@pytest.mark.parametrize("place", [0, 20, 127, 128, 150, 187, 188, 251])
def test_one_changed_byte_is_seen(cache: Path, place: int) -> None:
    calls, chunks = counted()
    store.cached_images("x", "a", CONTENT.shape, chunks)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    for _ in range(2):
        assert np.array_equal(store.cached_images("x", "a", CONTENT.shape, chunks), CONTENT)
    assert len(calls) == 2


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(300), b"\x93NUMPY\x01\x00\xff\xff{" * 40])
def test_what_begins_like_something_else_is_made_again(cache: Path, content: bytes) -> None:
    calls, chunks = counted()
    store.cached_images("x", "a", CONTENT.shape, chunks)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert np.array_equal(store.cached_images("x", "a", CONTENT.shape, chunks), CONTENT)
    assert len(calls) == 2


def test_a_file_of_0_2_without_a_sum_is_read_and_what_was_left_by_a_kill_is_removed(cache: Path) -> None:
    calls, chunks = counted()
    store.cached_images("x", "a", CONTENT.shape, chunks)
    (file,) = cache.iterdir()
    assert np.array_equal(np.load(file, mmap_mode="r"), CONTENT)  # any reader of numpy's format
    old = file.with_name(file.name.replace("-sha256", ""))
    old.write_bytes(file.read_bytes()[:-64])
    file.unlink()
    assert np.array_equal(store.cached_images("x", "a", CONTENT.shape, chunks), CONTENT)
    assert len(calls) == 1
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = partial_of(file)
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    left.write_bytes(b"half")
    old.unlink()
    store.cached_images("x", "a", CONTENT.shape, chunks)
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize("keep", [0, 60, 150])
def test_a_damaged_file_is_made_again(cache: Path, keep: int) -> None:
    calls, chunks = counted()
    store.cached_images("x", "a", CONTENT.shape, chunks)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    for _ in range(2):
        assert np.array_equal(store.cached_images("x", "a", CONTENT.shape, chunks), CONTENT)
    assert len(calls) == 2


def test_where_data_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAPEFT_DATA", raising=False)
    with pytest.raises(DataError, match="give root=, or set METAPEFT_DATA to the folder that holds birds/"):
        store.data_root(None, "birds")
    monkeypatch.setenv("METAPEFT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"there is no folder .*birds: put the data there"):
        store.data_root(None, "birds")
    (tmp_path / "birds").mkdir()
    assert store.data_root(None, "birds") == store.data_root(tmp_path, "birds") == tmp_path / "birds"

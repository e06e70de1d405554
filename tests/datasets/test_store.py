"""The cache of decoded images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from metapeft.base.errors import DataError
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

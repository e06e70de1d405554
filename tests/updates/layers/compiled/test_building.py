"""Compiling: once, whole or not at all, and a sentence where it cannot be."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import metapeft as mp
from metapeft.updates.layers.compiled import compiler as building
from metapeft.updates.layers.compiled import switch
from metapeft.updates.layers.compiled.switch import compiled_used, in_use, use_compiled


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(switch, "_loaded", None)
    return tmp_path / "metapeft"


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


#: writes the last argument, which is the library, and notes each call beside itself
TOUCHES = 'for last; do :; done; echo x >> "$0.calls"; echo library > "$last"'


def test_no_compiler_is_a_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        OSError, match=r"need a C\+\+ compiler, and \$CXX.*install g\+\+ 12 or newer, or leave them out"
    ):
        use_compiled()
    assert not in_use()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(cache))
    assert building.compiler() is None


def test_a_compiler_that_fails_says_why(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'echo "chain.cpp:1: warning: odd" >&2; echo "chain.cpp:2: error: no such thing" >&2; exit 1'
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    with pytest.raises(OSError, match=r"failed: chain\.cpp:2: error: no such thing"):
        mp.use_compiled()
    assert list(cache.iterdir()) == []
    assert not in_use()


def test_it_is_compiled_once_for_the_same_sources(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fake_compiler(tmp_path, TOUCHES)
    monkeypatch.setenv("CXX", compiler)
    first = building.library()
    assert building.library() == first
    assert first.read_text().startswith("library\n")
    assert first.parent == cache
    assert Path(f"{compiler}.calls").read_text().count("x") == 1
    for other in ("another processor", "a third"):
        monkeypatch.setattr(building, "processor_abilities", lambda other=other: other)
        assert building.library() != first
    monkeypatch.undo()
    assert [path.suffix for path in cache.iterdir()] == [".so"] * 3


def exchanged(path: Path) -> None:
    path.unlink()
    path.write_text("another's\n")


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


@pytest.mark.parametrize(
    "change",
    [
        exchanged,
        linked,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"lib", b"Lib")),
        lambda path: path.chmod(0o777),
    ],
)
def test_what_is_damaged_or_may_be_another_s_is_compiled_again(
    change: Callable[[Path], None], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fake_compiler(tmp_path, TOUCHES)
    monkeypatch.setenv("CXX", compiler)
    path = building.library()
    whole = path.read_bytes()
    change(path)
    assert building.library() == path
    assert path.read_bytes() == whole
    assert not path.is_symlink()
    assert not path.stat().st_mode & 0o022
    assert Path(f"{compiler}.calls").read_text().count("x") == 2


def test_a_folder_of_another_user_is_refused_and_one_s_own_is_closed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, TOUCHES))
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o777)
    building.library()
    assert not cache.stat().st_mode & 0o022
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(OSError, match="belongs to another user"):
        building.library()


def test_several_at_once_each_find_a_whole_library(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly = TOUCHES.replace(
        'echo library > "$last"', 'printf lib > "$last"; sleep 0.2; echo rary >> "$last"'
    )
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, slowly))
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: building.library().read_text(), range(4)))
    assert [text.partition("\n")[0] for text in texts] == ["library"] * 4


def test_a_file_that_is_no_library_is_a_sentence(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, TOUCHES))
    with pytest.raises(OSError, match="kernels-"):
        use_compiled()
    assert not in_use()


@pytest.mark.usefixtures("kernels")
def test_the_switch() -> None:
    assert not in_use()
    with compiled_used(True):
        assert in_use()
        with compiled_used(False):
            assert not in_use()
        assert in_use()
    assert not in_use()
    with pytest.raises(KeyError), compiled_used(True):
        raise KeyError
    assert not in_use()
    assert isinstance(switch.loaded(), ctypes.CDLL)


def test_the_sources_are_in_the_package() -> None:
    names = {path.name for path in Path(building.__file__).parent.glob("*.?pp")}
    headers = {"vectors", "winograd", "shape", "tiles", "call", "few_channels", "batch_grid", "dots", "amx"}
    sources = {
        "chain",
        "few_channels",
        "few_moments",
        "batch_chain",
        "batch_change",
        "batch_dots",
        "batch_sums",
    }
    assert names == {f"{name}.hpp" for name in headers} | {f"{name}.cpp" for name in sources}

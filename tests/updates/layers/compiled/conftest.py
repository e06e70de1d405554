"""Compiled kernels for the tests: in a cache of their own, and off again after each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from metapeft.updates.layers.compiled import compiler as building
from metapeft.updates.layers.compiled.switch import compiled_used, use_compiled


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The library, compiled from the sources as they are; without a compiler the test is skipped."""
    if building.compiler() is None:
        pytest.skip("needs a C++ compiler: install g++")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        use_compiled()
        use_compiled(False)


@pytest.fixture
def compiled(kernels: None) -> Iterator[None]:
    """On during the test."""
    with compiled_used(True):
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads is what it was, afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)

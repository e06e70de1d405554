"""CHANGELOG.md: it begins with this version, and what it says of moved names is so."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

import metapeft as mp
from tests.test_layout import ROOT, file_of

TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
MOVED = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \| (?:`mp\.(\w+)` )?.*\|$", TEXT, flags=re.M)


def found(path: str) -> Any:
    """The module or the object of a dotted path in this checkout; None where there is none."""
    if file_of(path) is not None:
        return importlib.import_module(path)
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, None) if file_of(module) is not None else None


def test_it_begins_with_this_version_or_the_next() -> None:
    versions = re.findall(r"^## (.+)", TEXT, flags=re.M)
    assert next(version for version in versions if not version.endswith(" - unreleased")) == mp.__version__


@pytest.mark.parametrize(("before", "now", "public"), MOVED)
def test_what_moved_is_there_and_no_longer_here(before: str, now: str, public: str) -> None:
    assert found(now) is not None
    if public:
        assert getattr(mp, public) is found(now)
    assert before == f"metapeft.{public}" or found(before) is None


def test_the_table_is_read() -> None:
    assert len(MOVED) == len(re.findall(r"^\| `(?:metapeft|theory)\.", TEXT, flags=re.M)) > 50

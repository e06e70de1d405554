"""Sizes in bytes with their units."""

from __future__ import annotations

from typing import Any

import pytest

from metapeft.base.machine.byte_units import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("1B", 1), ("2kb", 2000), ("8GiB", 8 << 30), (" 0.5 MiB ", 1 << 19), ("3TB", 3 * 10**12)],
)
def test_bytes_with_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "GiB", "-1GiB", "8 Gigs", "0B", "1e3MB", "nanGB", 0, -5, 2.5, True, None]
)
def test_other_texts_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"memory=.*as in 8GiB"):
        parse_bytes(text)

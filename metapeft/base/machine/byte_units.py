"""Amounts of memory as people write them. Loads no torch."""

from __future__ import annotations

import re

_UNITS = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_BY_NAME = {unit.lower(): factor for unit, factor in _UNITS.items()}


def parse_bytes(text: str | int, name: str = "memory") -> int:
    """The number of bytes that a text with a unit stands for; a whole number is bytes already.

    Args:
        text: a number and a unit: B; kB, MB, GB, TB (powers of 1000); KiB, MiB, GiB, TiB (powers of 1024).
        name: of the argument, for the message.

    Raises:
        ValueError: anything else, and less than one byte.

    Example:
        >>> parse_bytes("8GiB"), parse_bytes("1.5 kB"), parse_bytes(100)
        (8589934592, 1500, 100)
        >>> parse_bytes("8")
        Traceback (most recent call last):
        ValueError: memory='8': allowed is a number with a unit, B, kB, MB, GB, TB, KiB, MiB, GiB, TiB, as in 8GiB
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 1:
        return text
    found = (
        re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*", text) if isinstance(text, str) else None
    )
    factor = None if found is None else _BY_NAME.get(found[2].lower())
    size = 0 if found is None or factor is None else int(float(found[1]) * factor)
    if size < 1:
        raise ValueError(f"{name}={text!r}: allowed is a number with a unit, {', '.join(_UNITS)}, as in 8GiB")
    return size


def shown_bytes(size: float) -> str:
    """A number of bytes for people.

    Example:
        >>> shown_bytes(8589934592), shown_bytes(1500)
        ('8.0 GiB', '1.5 KiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"

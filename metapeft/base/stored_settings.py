"""Settings as JSON can say them, and the refusal of those that differ from what a run stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: metadata of a field that settings say only where it differs from its default: runs of before it was there do not
LATER: dict[str, Any] = {"later": True}


def as_json(value: Any) -> Any:
    """The value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def refuse_difference(part: str, stored: Any, given: Any) -> None:
    """Raise ValueError where a setting differs from that of the stored run, naming it."""
    if stored == given:
        return
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in {**stored, **given}:
            refuse_difference(f"{part}.{key}", stored.get(key), given.get(key))
        return
    raise ValueError(
        f"{part} is {given!r} here, but the run was started with {stored!r}: the stored settings win, leave "
        "the argument out or give the same"
    )


def custom(value: Any) -> dict[str, str]:
    """What stands for something of the user's own, which has to be given again: its name, or that of its class.

    Example:
        >>> custom(len), custom([1])
        ({'custom': 'len'}, {'custom': 'list'})
    """
    return {"custom": getattr(value, "__qualname__", type(value).__qualname__)}

"""Which options a call names, on the command line or in its file, also where it names the default."""

from __future__ import annotations

from cyclopts import App, ArgumentCollection

_names: set[str] = set()


def remember(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """To be the last `config` of an `App`: keeps the names of what was given, with underscores."""
    _names.clear()
    _names.update(argument.name.lstrip("-").replace("-", "_") for argument in arguments if argument.tokens)


def options() -> frozenset[str]:
    """The options of the call that was parsed last."""
    return frozenset(_names)

"""Tables of names, imported on first use.

Each folder of the package that can be extended (formats, heads, solvers, ...) has one `Registry`:
a table from public name to `"module:attribute"`. Looking a name up imports its module, nothing else does,
so `import metapeft` stays as quick as `import torch`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from metapeft.base.suggestions import did_you_mean


class Registry:
    """One folder's table: `attributes` are the names that Python code uses, `names` the strings that users write.

    Args:
        package: dotted name of the folder that the modules of the table are relative to.
        kind: what the table holds, in words, for error messages ("update format").
        attributes: Python name -> `"module:attribute"` (or `"module"` when both names agree).
        names: string name -> Python name, for things that may be chosen by a string.

    Example:
        >>> table = Registry("metapeft.base", "error", {"NumericalError": "errors"}, {"numerical": "NumericalError"})
        >>> table.attribute("NumericalError").__name__
        'NumericalError'
        >>> table.resolve("numerical").__name__
        'NumericalError'
    """

    def __init__(
        self, package: str, kind: str, attributes: Mapping[str, str], names: Mapping[str, str] | None = None
    ) -> None:
        self.package = package
        self.kind = kind
        self.attributes = dict(attributes)
        self.names = dict(names or {})

    def __iter__(self) -> Iterator[str]:
        return iter(self.attributes)

    def __contains__(self, name: object) -> bool:
        return name in self.attributes

    def made(self, value: object) -> bool:
        """Whether the class of an object is one of the table's own, not a user's."""
        name = type(value).__name__
        return name in self.attributes and type(value) is self.attribute(name)

    def attribute(self, name: str) -> Any:
        """Import and return the object behind a Python name; raises AttributeError for any other name."""
        if name not in self.attributes:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        module, _, attribute = self.attributes[name].partition(":")
        return getattr(importlib.import_module(f"{self.package}.{module}"), attribute or name)

    def check(self, name: str) -> None:
        """Raise ValueError, with the nearest name, for a string that names nothing here."""
        if name not in self.names:
            known = ", ".join(sorted(self.names))
            raise ValueError(
                f"unknown {self.kind} {name!r}: known are {known}{did_you_mean(name, self.names)}"
            )

    def resolve(self, name: str) -> Any:
        """Return the object that a string names; raises ValueError as `check` does."""
        self.check(name)
        return self.attribute(self.names[name])

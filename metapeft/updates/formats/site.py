"""A parameter of the backbone, with the update that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from metapeft.updates.formats.format import Format, Geometry


@dataclass(frozen=True)
class Site:
    """A parameter that carries an update; `named` where the user named it or its module, without a wildcard."""

    parameter: str
    format: Format
    geometry: Geometry
    named: bool = field(default=False, compare=False)


#: parameter -> the update that it carries
Sites = Mapping[str, Site]

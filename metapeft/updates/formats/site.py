"""A parameter of the backbone, with the update that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metapeft.updates.formats.format import Format, Geometry


@dataclass(frozen=True)
class Site:
    """A parameter that carries an update."""

    parameter: str
    format: Format
    geometry: Geometry


#: parameter -> the update that it carries
Sites = Mapping[str, Site]

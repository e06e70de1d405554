"""All architectures of the matrix, by library and group."""

from __future__ import annotations

from benchmarks.models import audio, decoders, layers, text, timm_nets, vision
from benchmarks.models.case import Case

Groups = dict[str, list[Case]]
LIBRARIES: dict[str, Groups] = {
    "transformers": {**text.GROUPS, **decoders.GROUPS, **vision.GROUPS, **audio.GROUPS},
    "timm": timm_nets.GROUPS,
    "torch": layers.GROUPS,
}


def groups(library: str) -> Groups:
    """Group -> cases of a library."""
    return LIBRARIES[library]


def cases() -> list[tuple[str, Case]]:
    """Every case, with its library.

    Example:
        >>> {library: sum(name == library for name, _ in cases()) for library in LIBRARIES}
        {'transformers': 83, 'timm': 51, 'torch': 46}
    """
    return [(library, case) for library, own in LIBRARIES.items() for group in own.values() for case in group]

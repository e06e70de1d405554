"""The table of episodes: adding one is its file and its line here."""

from __future__ import annotations

from typing import Any

from metapeft._registry import Registry

registry = Registry(
    __name__,
    "episode tool",
    attributes={
        "Episode": "episode",
        "EpisodeBatch": "episode",
        "EpisodeSampler": "sampler",
        "Protocol": "protocol",
        "dump": "listing",
        "verify": "listing",
        "Shift": "shift",
        "Augment": "augment",
    },
    names={},
)


def __getattr__(name: str) -> Any:
    return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)
